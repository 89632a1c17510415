/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Sharing fairly: how many claims a client has, and how fast it makes new ones (RFC 6888 REQ-4).
 *
 * `flows` counts claims, mappings included, but for those of TCP conversations that are over. It goes up when a
 * claim is made, and down when its conversation ends (set_state in claim.h), it is freed or it changes hands
 * (drop_flow_of). A client's entry is made with its first flow and swept when it has none. */
#pragma once

#include "maps.h"

INLINE struct client *client_of(const struct flow_key *key)
{
	struct client_key client_key = {.onramp = key->onramp, .address = key->client};

	return bpf_map_lookup_elem(&clients, &client_key);
}

INLINE void client_gains(const struct flow_key *key)
{
	struct client *client = client_of(key);

	if (client)
		__sync_fetch_and_add(&client->flows, 1);
}

INLINE void client_loses(const struct flow_key *key)
{
	struct client *client = client_of(key);

	if (client && client->flows)
		__sync_fetch_and_add(&client->flows, -1);
}
