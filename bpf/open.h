/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Opening a flow: which port it gets, and the two entries that remember it. */
#pragma once

#include "flow.h"
#include "pairing.h"
#include "search.h"

/* A flow has a port as soon as it is claimed. */
INLINE int settle(struct searching *searching)
{
	return 1;
}

/* What search->claim is for: the conversation `key`, of which `flow` has the first packet's numbers. */
INLINE void towards(struct search *search, const struct flow_key *key, const struct flow *flow)
{
	search->key.remote = key->remote;
	search->key.remote_port = key->remote_port;
	search->claim.flow = *key;
	search->claim.acknowledged = flow->sent - 1;
	search->claim.sent = flow->acknowledged; /* not 0 when the client answers the peer's SYN */
	search->claim.state = search->counted | (flow->acknowledged ? SEEN_IN : 0);
}

/* The claim that search->claim describes is not to be. */
INLINE void uncount(const struct search *search)
{
	if (search->claim.state & SEEN_COUNTED)
		client_returns(&search->claim.flow, 0);
}

/* The mapping of the client's address and port: the one it has, or a new one. Leaves its local end in
 * search->key. */
APART int find_mapping(struct __sk_buff *skb, struct trial *trial, const struct pool *pool, const struct flow_key *key)
{
	struct search *search = &trial->search;
	struct flow_key *mapping = &trial->mapping;
	struct flow *known;
	struct claim *claim;
	int reason;

	*mapping = *key;
	mapping->remote = search->key.remote = UNSPECIFIED;
	mapping->remote_port = search->key.remote_port = 0;
	search->claim.flow = *mapping;
	known = bpf_map_lookup_elem(&flows, mapping);
	/* A mapping in a slice that was lost would send the client's packets into the guard. */
	if (known && !held_here(known)) {
		bpf_map_delete_elem(&flows, mapping);
		known = 0;
	}
	if (known) {
		search->key.local = known->local;
		search->key.local_port = known->local_port;
		claim = bpf_map_lookup_elem(&claims, &search->key);
		if (claim && claim->expires_ns < search->until_ns ?
			    extend(claim, mapping, search->now_ns, search->until_ns) :
			    claim && alive(claim, search->now_ns) && same_flow(&claim->flow, mapping)) {
			copy(claim->client_mac, search->claim.client_mac, ETH_ALEN);
			copy(claim->onramp_mac, search->claim.onramp_mac, ETH_ALEN);
			return REASON_NONE;
		}
		bpf_map_delete_elem(&flows, mapping);
	}
	reason = client_takes(pool, mapping, search->now_ns, 0, &search->claim.state);
	if (reason)
		return reason;
	reason = find_port(skb, search, pool, 0);
	if (reason) {
		uncount(search);
		return reason;
	}
	trial->flow.local = search->key.local;
	trial->flow.local_port = search->key.local_port;
	if (!bpf_map_update_elem(&flows, mapping, &trial->flow, BPF_NOEXIST))
		return REASON_NONE;
	give_back(search);
	uncount(search);
	known = bpf_map_lookup_elem(&flows, mapping);
	if (!known)
		return REASON_TABLE_FULL;
	search->key.local = known->local; /* another CPU made the mapping this moment */
	search->key.local_port = known->local_port;
	return REASON_NONE;
}

/* Claims the client's port towards key's remote end. Returns the reason why not, or REASON_NONE; search->known when
 * another CPU has claimed it for this very conversation this moment. */
APART int claim_mapped(struct __sk_buff *skb, struct trial *trial, const struct pool *pool, const struct flow_key *key)
{
	struct search *search = &trial->search;
	struct claim *claim;
	int reason;

	reason = find_mapping(skb, trial, pool, key);
	if (reason)
		return reason;
	trial->mapped = search->key;
	search->early = 1; /* the port is this client's alone: its own ended conversations are not in its way */
	towards(search, key, &trial->flow);
	if (!insert_claim(search)) {
		claim = bpf_map_lookup_elem(&claims, &search->key);
		search->known = claim && same_flow(&claim->flow, key);
		return search->known ? REASON_NONE : search->full ? REASON_TABLE_FULL : REASON_SLICE_FULL;
	}
	if (holder_here(skb, search) != HOLDER_NONE) {
		give_back(search);
		return REASON_SLICE_FULL;
	}
	claim = key->protocol == IPPROTO_TCP ? bpf_map_lookup_elem(&claims, &trial->mapped) : 0;
	if (claim)
		__sync_fetch_and_add(&claim->sent, 1);
	return REASON_NONE;
}

/* Finds and claims a port for trial->flow. Returns the reason why not, or REASON_NONE. */
ALONE int open_flow(struct __sk_buff *skb, const struct flow_key *key, struct trial *trial, __u32 pool_key, __u64 now)
{
	struct pool *pool = bpf_map_lookup_elem(&pools, &pool_key);
	struct ethhdr *eth = (void *)(long)skb->data;
	struct flow *flow, *other;
	struct search *search;
	int reason;

	if (!pool || !key || !trial)
		return REASON_NO_POOL;
	flow = &trial->flow;
	search = &trial->search;
	search->now_ns = now;
	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return REASON_INTERNAL;
	reason = client_takes(pool, key, now, 1, &search->counted);
	if (reason)
		return reason;
	if (pool->slice_count > 1)
		search->address = paired_address(key, pool, pool_key, now);
	copy(search->claim.client_mac, eth->h_source, ETH_ALEN);
	copy(search->claim.onramp_mac, eth->h_dest, ETH_ALEN);
	copy(flow->client_mac, eth->h_source, ETH_ALEN);
	search->net = netns_of_packet(skb);
	search->until_ns = search->claim.expires_ns = now + lifetime_ns(pool, key->protocol, 0);
	search->closing_ns = pool->tcp_closing_ns;
	search->claim.since_ticks = now / TICK_NS;
	search->claim.pool = pool_key;
	search->key.protocol = key->protocol;
	search->first_slice = (address_number(key->client) * 0x9e3779b1u ^ key->onramp) >> 8;
	if (maps_independently(pool, key->protocol)) {
		reason = claim_mapped(skb, trial, pool, key);
	} else {
		towards(search, key, flow);
		reason = find_port(skb, search, pool, 0);
	}
	if ((reason || search->known) && search->counted)
		client_returns(key, 0);
	if (reason)
		return reason;
	flow->local = search->key.local;
	flow->local_port = search->key.local_port;
	flow->refresh_ns = key->protocol == IPPROTO_TCP ? 0 : search->now_ns + refresh_ns(pool, search->until_ns - search->now_ns);
	if (search->known) /* and will remember it */
		return REASON_NONE;
	if (bpf_map_update_elem(&flows, key, flow, BPF_NOEXIST)) {
		give_back(search);
		if (search->counted)
			client_returns(key, 0);
		other = bpf_map_lookup_elem(&flows, key);
		if (!other)
			return REASON_TABLE_FULL;
		*flow = *other; /* another CPU opened the same flow this moment */
		return REASON_NONE;
	}
	count(TRAFFIC_NEW_FLOW);
	if (search->reused)
		count(TRAFFIC_REUSED);
	return REASON_NONE;
}
