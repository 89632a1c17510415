/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Sharing fairly: how many claims a client has, and how fast it makes new ones (RFC 6888 REQ-4).
 *
 * `flows` counts claims, mappings included, but for those of TCP conversations that are over. It goes up when a
 * claim is made, and down when its conversation ends (set_state in claim.h), it is freed or it changes hands
 * (drop_flow_of). A client's entry is made with its first flow and swept when it has none. */
#pragma once

#include "maps.h"

#define NS_PER_SECOND 1000000000ULL

/* May this client open one more flow? Counts it towards the rate, when it may. */
INLINE enum reason client_may(const struct pool *pool, const struct flow_key *key, __u64 now)
{
	struct client_key client_key = {.onramp = key->onramp, .address = key->client};
	struct client fresh = {}, *client;
	__u64 next;

	if (!pool->client_flows_max && !pool->client_rate_max)
		return REASON_NONE;
	client = bpf_map_lookup_elem(&clients, &client_key);
	if (!client) {
		bpf_map_update_elem(&clients, &client_key, &fresh, BPF_NOEXIST);
		client = bpf_map_lookup_elem(&clients, &client_key);
	}
	if (!client)
		return REASON_TABLE_FULL;
	if (pool->client_flows_max && client->flows >= pool->client_flows_max)
		return REASON_CLIENT_FLOWS;
	if (!pool->client_rate_max)
		return REASON_NONE;
	next = client->next_ns > now ? client->next_ns : now;
	if (next >= now + NS_PER_SECOND) /* a second's worth at once is fine */
		return REASON_CLIENT_RATE;
	client->next_ns = next + NS_PER_SECOND / pool->client_rate_max;
	return REASON_NONE;
}

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
