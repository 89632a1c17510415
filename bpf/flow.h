/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The life of one forwarded flow: routed, opened (search.h finds the port), refreshed, sent. */
#pragma once

#include "claim.h"
#include "count.h"
#include "rewrite.h"
#include "search.h"

#define FAMILY_IPV4 2             /* AF_INET */
#define HOP_CACHED_NS 1000000000ULL /* a changed route or neighbour is noticed after this */

enum way { WAY_UPLINK, WAY_HOST, WAY_NONE, WAY_OFF };

/* Where would the kernel route the packet? WAY_OFF: it does not say, forwarding is off. Fills the flow's next hop when it is the uplink; hop_ns stays 0
 * while the neighbour's MAC address is not known. */
INLINE enum way route(struct __sk_buff *skb, const struct packet *packet, struct flow *flow, __u64 now, __u32 *gateway)
{
	struct bpf_fib_lookup fib = {.family = FAMILY_IPV4, .ifindex = skb->ifindex};
	struct settings *self;
	__u32 first = 0;
	long result;

	fib.l4_protocol = packet->protocol;
	fib.ipv4_src = packet->source;
	fib.ipv4_dst = packet->destination;
	result = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	self = bpf_map_lookup_elem(&settings, &first);
	if (result == BPF_FIB_LKUP_RET_NOT_FWDED)
		return WAY_HOST;
	if (result == BPF_FIB_LKUP_RET_FWD_DISABLED)
		return WAY_OFF;
	if (!self || (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH) ||
	    fib.ifindex != self->uplink)
		return WAY_NONE;
	*gateway = fib.ipv4_dst;
	flow->hop_ns = 0;
	if (result == BPF_FIB_LKUP_RET_SUCCESS) {
		flow->hop_ns = now + HOP_CACHED_NS;
		copy(flow->hop_destination, fib.dmac, ETH_ALEN);
		copy(flow->hop_source, fib.smac, ETH_ALEN);
	}
	return WAY_UPLINK;
}

/* Translates the packet and sends it out of the uplink. Returns REASON_NONE with the verdict in `verdict`. */
INLINE enum reason send(struct __sk_buff *skb, const struct packet *packet, struct flow *flow, __u64 now, int *verdict)
{
	struct rewrite rewrite = {.end = END_SOURCE, .address = flow->local, .port = flow->local_port};
	__u32 first = 0, gateway = 0;
	struct settings *self = bpf_map_lookup_elem(&settings, &first);

	if (flow->hop_ns <= now && route(skb, packet, flow, now, &gateway) != WAY_UPLINK)
		return REASON_NO_ROUTE;
	if (!self || translate(skb, packet, &rewrite))
		return REASON_INTERNAL;
	if (flow->hop_ns <= now) { /* let the kernel find the neighbour; it holds the packet meanwhile */
		struct bpf_redir_neigh hop = {.nh_family = FAMILY_IPV4, .ipv4_nh = gateway};

		*verdict = bpf_redirect_neigh(self->uplink, &hop, sizeof(hop), 0);
	} else {
		if (set_mac(skb, flow->hop_destination, flow->hop_source))
			return REASON_INTERNAL;
		*verdict = bpf_redirect(self->uplink, 0);
	}
	count(TRAFFIC_OUT);
	return REASON_NONE;
}

/* What a packet from the client adds to what was seen. Traffic after an RST means that the conversation
 * goes on (RFC 7857 section 2.2); a SYN after its end, that the same ports begin another one. */
INLINE __u32 seen_out(__u32 state, __u8 flags)
{
	if (flags & TCP_RST)
		return state | SEEN_RST;
	if (flags & TCP_SYN)
		return state & (SEEN_RST | SEEN_FIN_OUT | SEEN_FIN_IN) ? 0 : state;
	return (state & ~SEEN_RST) | SEEN_OUT | (flags & TCP_FIN ? SEEN_FIN_OUT : 0);
}

INLINE __u32 seen_in(__u32 state, __u8 flags)
{
	if (flags & TCP_RST)
		return state | SEEN_RST;
	return state | SEEN_IN | (flags & TCP_FIN ? SEEN_FIN_IN : 0);
}

/* Does the client send from another MAC address than before? Its router failed over, or it was made anew under its
 * old address: from then on replies must go there. */
INLINE int has_moved(struct __sk_buff *skb, const struct flow *flow)
{
	struct ethhdr *eth = (void *)(long)skb->data;
	const __u16 *now = (void *)eth->h_source, *before = (void *)flow->client_mac;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return 0;
	return (now[0] ^ before[0]) | (now[1] ^ before[1]) | (now[2] ^ before[2]);
}

/* Asks the claim of a known flow, keeps it alive, and tells it where the client is. Returns 0 when it is no longer
 * this flow's. */
INLINE int refresh(struct __sk_buff *skb, struct flow *flow, const struct flow_key *key, __u8 flags, __u64 now)
{
	struct ethhdr *eth = (void *)(long)skb->data;
	struct claim_key claim_key = {.local = flow->local,
				      .local_port = flow->local_port,
				      .remote = key->remote,
				      .remote_port = key->remote_port,
				      .protocol = key->protocol};
	struct claim *claim = bpf_map_lookup_elem(&claims, &claim_key);
	__u32 state, pool_key;
	struct pool *pool;
	__u64 lifetime;

	if (!claim || (void *)(eth + 1) > (void *)(long)skb->data_end)
		return 0;
	pool_key = claim->pool;
	pool = bpf_map_lookup_elem(&pools, &pool_key);
	if (!pool)
		return 0;
	state = key->protocol == IPPROTO_TCP ? seen_out(claim->state, flags) : 0;
	lifetime = lifetime_ns(pool, key->protocol, state);
	if (!extend(claim, key, now, now + lifetime))
		return 0;
	claim->state = state;
	copy(claim->client_mac, eth->h_source, ETH_ALEN);
	copy(claim->onramp_mac, eth->h_dest, ETH_ALEN);
	copy(flow->client_mac, eth->h_source, ETH_ALEN);
	/* Until the conversation is established its state may change with every packet. */
	flow->refresh_ns = 0;
	if (key->protocol != IPPROTO_TCP || (state & SEEN_IN))
		flow->refresh_ns = now + refresh_ns(pool, lifetime);
	return 1;
}

/* Finds and claims a port. Returns the reason why not, or REASON_NONE. */
static __attribute__((noinline)) int open_flow(struct __sk_buff *skb, const struct flow_key *key, struct flow *flow,
					       __u32 pool_key, __u64 now)
{
	struct search search = {.skb = skb, .now_ns = now, .pool = pool_key};
	struct pool *pool = bpf_map_lookup_elem(&pools, &pool_key);
	struct ethhdr *eth = (void *)(long)skb->data;
	struct flow *other;
	__u64 lifetime;

	if (!pool || !key || !flow)
		return REASON_NO_POOL;
	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return REASON_INTERNAL;
	copy(search.claim.client_mac, eth->h_source, ETH_ALEN);
	copy(search.claim.onramp_mac, eth->h_dest, ETH_ALEN);
	copy(flow->client_mac, eth->h_source, ETH_ALEN);
	lifetime = lifetime_ns(pool, key->protocol, 0);
	search.until_ns = search.claim.expires_ns = now + lifetime;
	search.claim.since_ns = now;
	search.claim.flow = *key;
	search.claim.pool = pool_key;
	search.key.remote = key->remote;
	search.key.remote_port = key->remote_port;
	search.key.protocol = key->protocol;
	/* The same client starts with the same slice, so that its address stays the same while there is room. */
	search.first_slice = (be32(key->client) * 0x9e3779b1u ^ key->onramp) >> 8;
	bpf_loop(pool->slice_count, try_slice, &search, 0);
	if (search.full)
		return REASON_TABLE_FULL;
	if (!search.found)
		return search.held ? REASON_SLICE_FULL : REASON_NO_SLICE;
	flow->local = search.key.local;
	flow->local_port = search.key.local_port;
	flow->refresh_ns = key->protocol == IPPROTO_TCP ? 0 : now + refresh_ns(pool, lifetime);
	if (bpf_map_update_elem(&flows, key, flow, BPF_NOEXIST)) {
		bpf_map_delete_elem(&claims, &search.key);
		other = bpf_map_lookup_elem(&flows, key);
		if (!other)
			return REASON_TABLE_FULL;
		*flow = *other; /* another CPU opened the same flow this moment */
		return REASON_NONE;
	}
	count(TRAFFIC_NEW_FLOW);
	if (search.reused)
		count(TRAFFIC_REUSED);
	return REASON_NONE;
}
