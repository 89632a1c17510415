/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What comes back to a client: what it does to its claim, whether it fits, and errors about what the client sent. */
#pragma once

#include "cut.h"
#include "encapsulate.h"
#include "flow.h"
#include "icmp.h"
#include "mss.h"
#include "mute.h"
#include "scratch.h"

#define NOT_TOO_BIG -2

/* A reply keeps a TCP claim alive and moves its state on. Replies of other protocols do not: whoever knows
 * the port could keep it taken for ever (RFC 4787 REQ-6 leaves it open). */
ALONE int seen_reply(struct claim *claim, const struct packet *packet, __u64 now)
{
	struct flow_key owner;
	struct flow *flow = 0;
	__u32 state, pool_key;
	struct pool *pool;
	__u64 lifetime;
	int opening;
	__u8 flags;

	if (!claim || !packet)
		return 0;
	pool_key = claim->pool;
	owner = claim->flow;
	flags = packet->tcp_flags;
	opening = !(claim->state & SEEN_IN);
	if (flags & (TCP_SYN | TCP_FIN | TCP_RST))
		flow = bpf_map_lookup_elem(&flows, &owner);
	follow(packet, &claim->acknowledged, &claim->sent);
	if (flags & TCP_RST) {
		if (!flow || !believable(packet, flow->acknowledged, claim->sent, flow->sent, opening))
			return 0;
	} else if (flags & TCP_SYN) { /* anybody can forge a SYN: it must be the first, or answer the client's */
		if (flow && (opening || ((flags & TCP_ACK) && packet->acknowledgement == flow->sent)))
			begin(packet, &claim->acknowledged, &claim->sent, &flow->acknowledged);
	}
	if ((flags & TCP_SYN) || packet->sequence_end != claim->sent)
		flags &= ~TCP_FIN; /* forged as well: it ends what its sender has sent */
	state = seen_in(claim->state, flags);
	if (state == claim->state && claim->refresh_in_ticks > now / TICK_NS)
		return 0;
	pool = bpf_map_lookup_elem(&pools, &pool_key);
	if (!pool)
		return 0;
	lifetime = lifetime_ns(pool, IPPROTO_TCP, state);
	if (!extend(claim, &owner, now, now + lifetime))
		return 0;
	set_state(claim, state);
	refresh_mapping(pool, &owner, claim, now, lifetime);
	/* After the end every packet is noticed: when the client goes on, the conversation does; and the port may be
	 * used again only when both have been silent for a moment. */
	claim->refresh_in_ticks = ended(state) ? 0 : (now + refresh_ns(pool, lifetime)) / TICK_NS;
	if (flow && ended(state))
		flow->refresh_ns = 0;
	return 0;
}

/* An error about a packet that left from one of our ports: to the client, or up to this host's socket, when a flow
 * sent it. */
ALONE int error_in(struct __sk_buff *skb, const struct packet *packet)
{
	__u8 client_mac[ETH_ALEN], onramp_mac[ETH_ALEN];
	struct scratch *scratch = scratch_here();
	struct claim_key *key;
	struct claim *claim;
	struct quote *quote;
	void *data, *end;
	__u32 onramp;
	int hops;

	if (!packet || !scratch)
		return TC_ACT_SHOT;
	key = &scratch->claim_key;
	quote = &scratch->quote;
	pull(skb, QUOTE_MAX);
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (parse_quote(data, end, packet, quote) || !same_address(quote->source, packet->destination))
		return TC_ACT_UNSPEC;
	zero_fill(key, sizeof(*key));
	key->local = quote->source;
	key->remote = quote->destination;
	key->local_port = quote->source_port;
	key->remote_port = quote->protocol == PROTOCOL_ICMP ? 0 : quote->destination_port;
	key->protocol = quote->protocol;
	claim = bpf_map_lookup_elem(&claims, key);
	onramp = claim ? claim->flow.onramp : 0;
	if (!claim || !onramp || !alive(claim, bpf_ktime_get_coarse_ns())) /* a socket's, or nobody's */
		return TC_ACT_UNSPEC;
	hops = onramp != skb->ifindex;
	if (hops && packet->ttl <= 1)
		return drop(skb, REASON_HOP_LIMIT, HOOK_EGRESS_IN, packet);
	copy(client_mac, claim->client_mac, ETH_ALEN);
	copy(onramp_mac, claim->onramp_mac, ETH_ALEN);
	if (translate_error(data, end, packet, quote, 1, claim->flow.client, claim->flow.client_port, hops) ||
	    (hops && set_mac(skb, client_mac, onramp_mac)))
		return drop(skb, REASON_INTERNAL, HOOK_EGRESS_IN, packet);
	count(TRAFFIC_IN);
	return hops ? bpf_redirect(onramp, 0) : TC_ACT_UNSPEC;
}

/* A fragment from the wire, for a shared address. Returns GO_ON when it has ports and they are this server's. */
ALONE int fragment_in(struct __sk_buff *skb, struct packet *packet)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	__u32 owner = 0;
	KEY_HERE(key);
	int verdict;

	if (!packet || !key)
		return TC_ACT_SHOT;
	if (!in_block(packet->destination))
		return TC_ACT_UNSPEC;
	key_of(packet, SIDE_WIRE, key);
	if (is_later(packet)) {
		if (!recall(packet, key, now))
			return hold(skb, packet, SIDE_WIRE, now);
	} else {
		if (remember(packet, key, 0, 0, now))
			return drop(skb, REASON_INTERNAL, HOOK_EGRESS_IN, packet);
		if (release_held(skb, key, now, 1))
			return TC_ACT_SHOT;
	}
	switch (place_of(packet->destination, packet->destination_port, &owner)) {
	case PLACE_HERE:
		return GO_ON;
	case PLACE_ELSEWHERE: /* met the others here */
		verdict = steer(skb, packet, owner, HOOK_EGRESS_IN);
		if (verdict != TC_ACT_SHOT) /* its pieces count themselves, if it was cut */
			gone_on(packet, SIDE_WIRE);
		return verdict;
	case PLACE_EXPIRED:
		return drop(skb, REASON_LEASE_EXPIRED, HOOK_EGRESS_IN, packet);
	default:
		return drop(skb, REASON_NO_OWNER, HOOK_EGRESS_IN, packet);
	}
}

/* The peer's SYN or SYN/ACK: what it announces is how large the client's segments may be. */
ALONE int clamp_reply(struct __sk_buff *skb, __u32 l4_offset, const struct claim *claim)
{
	struct flow_key key;
	struct onramp *onramp;
	struct flow *flow;

	if (!claim)
		return 0;
	key = claim->flow;
	onramp = bpf_map_lookup_elem(&onramps, &key.onramp);
	if (!onramp)
		return 0;
	flow = bpf_map_lookup_elem(&flows, &key);
	return clamp_mss(skb, l4_offset, mss_limit(onramp, flow ? flow->hop_mtu : 0));
}

/* May anybody send to this mapping? */
INLINE int open_to_all(const struct claim *claim, __u8 protocol)
{
	__u32 pool_key = claim->pool;
	struct pool *pool = bpf_map_lookup_elem(&pools, &pool_key);

	return pool && filters_independently(pool, protocol);
}

/* A reply larger than the client's interface carries is not dropped unsaid there: its sender hears which size
 * fits, from the shared address (RFC 4787 REQ-13). Returns the verdict, or NOT_TOO_BIG. */
ALONE int too_big(struct __sk_buff *skb, const struct packet *packet, __u32 onramp, __u32 pool)
{
	__u32 bytes, mtu;

	if (!packet)
		return NOT_TOO_BIG;
	bytes = mtu = packet_bytes(skb, packet);
	/* The helper writes the interface's MTU. Its verdict is about the buffer, which may be many packets. */
	if (bytes <= BYTES_ALWAYS_FIT || bpf_check_mtu(skb, onramp, &mtu, 0, 0) < 0 || bytes <= mtu)
		return NOT_TOO_BIG;
	if (!cut_up(skb, packet, mtu, 1))
		return TC_ACT_SHOT;
	count_drop(REASON_TOO_BIG, HOOK_EGRESS_IN, skb->ifindex, packet);
	if (is_later(packet) || muted(packet, skb->ifindex, pool))
		return TC_ACT_SHOT;
	if (icmp_error(skb, packet, &packet->destination, mtu << 16 | ERROR(ICMP_TOO_BIG, UNREACHABLE_TOO_BIG)))
		return TC_ACT_SHOT;
	return bpf_redirect_neigh(skb->ifindex, 0, 0, 0); /* not to whom it came from: a neighbour may have steered it */
}
