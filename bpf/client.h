/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Sharing fairly: what a client has, how fast it makes more (RFC 6888 REQ-4 and 5), and which address it leaves from.
 *
 * A client of a pool with limits, or with several addresses, has an entry. `claims` is the number of its claims that are marked
 * SEEN_COUNTED; `tcp`, `udp` and `icmp` of those whose conversation is not over. The rules that keep them exact:
 *
 *  - client_takes reserves before the claim is made, so that a limit holds on all CPUs together; client_returns undoes
 *    it when no claim came of it, or when the claim is freed or changes hands (drop_flow_of in claim.h).
 *  - What changes a claim's state swaps it (set_state in claim.h), so that every end is counted by exactly one CPU.
 *  - The mark is the claim's, not the pool's: a claim from before the pool counted is never counted off.
 *  - Only an entry without claims is freed: by compare-and-swap of that 0 for CLIENT_GONE. Who takes from an entry that
 *    is gone this moment goes uncounted. */
#pragma once

#include "maps.h"

#define CLIENT_GONE 0x80000000u
#define NS_PER_SECOND 1000000000ULL

INLINE struct client_key client_key_of(const struct flow_key *key)
{
	return (struct client_key){.onramp = key->onramp, .address = subscriber(key->client)};
}

INLINE struct client *client_of(const struct flow_key *key)
{
	struct client_key client_key = client_key_of(key);

	return bpf_map_lookup_elem(&clients, &client_key);
}

INLINE __u32 *flows_of(struct client *client, __u8 protocol)
{
	return protocol == IPPROTO_TCP ? &client->tcp : protocol == IPPROTO_UDP ? &client->udp : &client->icmp;
}

/* The conversation of a counted claim ended (-1), or goes on after all (1). */
INLINE void client_counts(const struct flow_key *key, int change)
{
	struct client *client = client_of(key);

	if (client)
		__sync_fetch_and_add(flows_of(client, key->protocol), change);
}

/* A counted claim is gone; `over`: its conversation had ended, so that only memory comes back. Seldom, and deep in a search:
 * not for each on its stack. */
APART __attribute__((unused)) void client_returns(const struct flow_key *key, int over)
{
	struct client *client = client_of(key);

	if (!client)
		return;
	if (!over)
		__sync_fetch_and_add(flows_of(client, key->protocol), -1);
	__sync_fetch_and_add(&client->claims, -1);
}

INLINE int over_limit(__u32 has, __u32 limit)
{
	return limit && has > limit;
}

/* Is one flow more within the rate? A second's worth may come at once (GCRA: `next_ns` is when the next is due). */
INLINE int in_time(struct client *client, __u32 per_second, __u64 now)
{
	__u64 before, next;

	for (int tries = 0; tries < 4; tries++) {
		before = *(volatile __u64 *)&client->next_ns;
		next = (before > now ? before : now) + NS_PER_SECOND / per_second;
		if (next > now + NS_PER_SECOND)
			return 0;
		if (__sync_val_compare_and_swap(&client->next_ns, before, next) == before)
			return 1;
	}
	return 1; /* four others were faster: they are counted */
}

/* Reserves one claim more for the client of `key`. Returns why not, or REASON_NONE with `counted`: whether there is
 * something to give back. `paced`: it counts towards the rate. */
ALONE int client_takes(const struct pool *pool, const struct flow_key *key, __u64 now, int paced, __u32 *counted)
{
	enum reason reason = REASON_NONE;
	struct client_key client_key = {};
	struct client fresh = {}, *client;
	__u32 *flows;

	if (!pool || !key || !counted)
		return REASON_INTERNAL;
	*counted = 0;
	if (!(pool->behaviour & (BEHAVIOUR_LIMIT | BEHAVIOUR_SEVERAL)))
		return REASON_NONE;
	client_key = client_key_of(key);
	client = bpf_map_lookup_elem(&clients, &client_key);
	if (!client) {
		bpf_map_update_elem(&clients, &client_key, &fresh, BPF_NOEXIST);
		client = bpf_map_lookup_elem(&clients, &client_key);
	}
	if (!client) /* no room: a pool without limits needs none */
		return pool->behaviour & BEHAVIOUR_LIMIT ? REASON_CLIENT_TABLE : REASON_NONE;
	if (__sync_fetch_and_add(&client->claims, 1) & CLIENT_GONE)
		return REASON_NONE;
	flows = flows_of(client, key->protocol);
	__sync_fetch_and_add(flows, 1);
	if (over_limit(client->tcp + client->udp + client->icmp, pool->client_flows_max) ||
	    over_limit(*flows, key->protocol == IPPROTO_TCP ? pool->client_tcp_max :
			       key->protocol == IPPROTO_UDP ? pool->client_udp_max : pool->client_icmp_max))
		reason = REASON_CLIENT_FLOWS;
	else if (over_limit(client->claims, pool->client_state_max))
		reason = REASON_CLIENT_STATE;
	else if (paced && pool->client_rate_max && !in_time(client, pool->client_rate_max, now))
		reason = REASON_CLIENT_RATE;
	if (reason) {
		__sync_fetch_and_add(flows, -1);
		__sync_fetch_and_add(&client->claims, -1);
		return reason;
	}
	*counted = SEEN_COUNTED;
	return REASON_NONE;
}
