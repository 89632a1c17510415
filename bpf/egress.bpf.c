// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Translation of forwarded packets.
 *
 *   egress_out   tc ingress of an on-ramp: a client's packet. Flow known -> rewrite, send out of the uplink
 *                (through the guard). New -> find and claim a free port first.
 *   egress_in    tc ingress of the uplink, after the director said "here": a reply whose claim belongs to a
 *                flow is rewritten and handed to the client, or up to this host's socket whose flow it is
 *                (uplink.bpf.c); everything else goes up to the kernel stack as it is.
 *
 * Neither conntrack nor a routing rule takes part. Packets for the server itself are passed up untouched.
 */
#include "exempt.h"
#include "handed.h"
#include "link.h"
#include "mss.h"
#include "open.h"
#include "outward.h"
#include "reply.h"
#include "room.h"
#include "source.h"

INLINE int pass_to_host(void)
{
	count(TRAFFIC_TO_HOST);
	return TC_ACT_UNSPEC;
}

/* Tells the client that its packet goes nowhere, and counts why. */
INLINE int reject(struct __sk_buff *skb, const struct packet *packet, const struct onramp *onramp, enum reason reason,
		  __u32 error)
{
	count_drop(reason, HOOK_EGRESS_OUT, skb->ifindex, packet);
	/* About fragments the error is sent for the first one (RFC 1122 section 3.2.2). */
	if (is_later(packet) || muted(packet, skb->ifindex, onramp->pool))
		return TC_ACT_SHOT;
	return icmp_error(skb, packet, &onramp->address, error) ? TC_ACT_SHOT : bpf_redirect(skb->ifindex, 0);
}

INLINE int send_or_drop(struct __sk_buff *skb, struct packet *packet, struct flow *flow,
			const struct onramp *onramp, __u64 now)
{
	int verdict = TC_ACT_SHOT;
	enum reason reason;

	if ((packet->tcp_flags & TCP_SYN) && clamp_mss(skb, packet->l4_offset, mss_limit(onramp, flow->hop_mtu)))
		return drop(skb, REASON_INTERNAL, HOOK_EGRESS_OUT, packet);
	reason = send(skb, packet, flow, now, &verdict);
	if (!reason)
		return verdict;
	if (reason == REASON_TOO_BIG && !cut_up(skb, packet, flow->hop_mtu, 0))
		return TC_ACT_SHOT;
	if (reason == REASON_TOO_BIG)
		return reject(skb, packet, onramp, reason,
			      (__u32)flow->hop_mtu << 16 | ERROR(ICMP_TOO_BIG, UNREACHABLE_TOO_BIG));
	return drop(skb, reason, HOOK_EGRESS_OUT, packet);
}

/* The kernel says nothing about routes while the on-ramp does not forward: for a moment when an agent starts or
 * stops. Packets for the server itself are not its matter even then; its address there is the one clients use. */
INLINE int for_host(const struct packet *packet, const struct onramp *onramp, enum way way)
{
	return way == WAY_HOST || (way == WAY_OFF && onramp && same_address(packet->destination, onramp->address));
}

/* Does it answer a SYN or an echo request that came in through an endpoint-independent mapping (RFC 5382 REQ-3)? */
INLINE int answers(const struct packet *packet, const struct flow_key *key, __u32 pool_key, struct flow_key *mapping)
{
	struct pool *pool = bpf_map_lookup_elem(&pools, &pool_key);

	if (packet->protocol == IPPROTO_TCP ?
		    (packet->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) != (TCP_SYN | TCP_ACK) :
		    packet->icmp_type != ICMP_ECHO_REPLY)
		return 0;
	*mapping = *key;
	mapping->remote = UNSPECIFIED;
	mapping->remote_port = 0;
	return pool && filters_independently(pool, packet->protocol) && bpf_map_lookup_elem(&flows, mapping);
}

INLINE int first_packet(struct __sk_buff *skb, struct packet *packet, const struct flow_key *key,
			const struct onramp *onramp, struct trial *trial, __u64 now)
{
	ip_address gateway = UNSPECIFIED;
	__u32 error, pool_key;
	enum way way;
	int reason;

	zero_fill(trial, sizeof(*trial));
	if (!is_client(onramp, &packet->source))
		return drop(skb, REASON_SPOOFED, HOOK_EGRESS_OUT, packet);
	if (is_exempt(skb->ifindex, packet))
		return pass_to_host();
	way = route(skb, packet, &trial->flow, now, &gateway);
	if (for_host(packet, onramp, way))
		return pass_to_host();
	pool_key = onramp->pool;
	if (!bpf_map_lookup_elem(&pools, &pool_key)) /* its addresses are all of the other family */
		return reject(skb, packet, onramp, REASON_FAMILY, ERROR(ICMP_UNREACHABLE, UNREACHABLE_PROHIBITED));
	if (way != WAY_UPLINK)
		return reject(skb, packet, onramp, REASON_NO_ROUTE, ERROR(ICMP_UNREACHABLE, UNREACHABLE_NET));
	if (packet->ttl <= 1)
		return reject(skb, packet, onramp, REASON_HOP_LIMIT, ERROR(ICMP_TIME_EXCEEDED, 0));
	if (!begins(packet) && !answers(packet, key, pool_key, &trial->mapping))
		return drop(skb, REASON_NO_FLOW, HOOK_EGRESS_OUT, packet);
	if (packet->protocol == IPPROTO_TCP) {
		__u32 nothing;

		begin(packet, &trial->flow.acknowledged, &trial->flow.sent, &nothing);
	}
	reason = open_flow(skb, key, trial, onramp->pool, now);
	if (reason && make_room(reason, trial))
		reason = open_flow(skb, key, trial, onramp->pool, now);
	error = packet->protocol == IPPROTO_TCP ? UNREACHABLE_HOST : UNREACHABLE_PROHIBITED;
	if (reason)
		return reject(skb, packet, onramp, reason, ERROR(ICMP_UNREACHABLE, error));
	return send_or_drop(skb, packet, &trial->flow, onramp, now);
}

#define OURS -2

/* A packet of no flow that may not be ours to translate: from nobody who is a client, or for the server itself, whose
 * matter it is. Returns the verdict, or OURS. */
ALONE int not_ours(struct __sk_buff *skb, const struct packet *packet, const struct onramp *onramp)
{
	struct flow unused = {};
	ip_address gateway = UNSPECIFIED;

	if (!packet)
		return TC_ACT_SHOT;
	if (!is_client(onramp, &packet->source))
		return drop(skb, REASON_SPOOFED, HOOK_EGRESS_OUT, packet);
	if (is_exempt(skb->ifindex, packet) ||
	    (!in_block(packet->destination) && for_host(packet, onramp, route(skb, packet, &unused, 0, &gateway))))
		return pass_to_host();
	return OURS;
}

/* A client packet that cannot be translated. */
ALONE int untranslatable(struct __sk_buff *skb, const struct packet *packet, const struct onramp *onramp)
{
	int verdict;

	if (!packet)
		return TC_ACT_SHOT;
	verdict = packet->reason == REASON_MALFORMED ? OURS : not_ours(skb, packet, onramp);
	return verdict == OURS ? drop(skb, packet->reason, HOOK_EGRESS_OUT, packet) : verdict;
}

#define NOT_A_FLOW -2

/* A client's (or a router's behind it) error about a packet that we gave it. */
ALONE int error_out(struct __sk_buff *skb, struct packet *packet)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct scratch *scratch = scratch_here();
	ip_address gateway = UNSPECIFIED;
	struct flow *flow;

	if (!packet || !scratch)
		return TC_ACT_SHOT;
	packet->reason = REASON_ICMP_ERROR;
	flow = quoted_flow(skb, packet, scratch);
	if (!flow)
		return NOT_A_FLOW;
	if (packet->ttl <= 1)
		return drop(skb, REASON_HOP_LIMIT, HOOK_EGRESS_OUT, packet);
	if (flow->hop_ns <= now && route(skb, packet, flow, now, &gateway) != WAY_UPLINK)
		return drop(skb, REASON_NO_ROUTE, HOOK_EGRESS_OUT, packet);
	if (translate_error((void *)(long)skb->data, (void *)(long)skb->data_end, packet, &scratch->quote, 0,
			    flow->local, flow->local_port, 1))
		return drop(skb, REASON_INTERNAL, HOOK_EGRESS_OUT, packet);
	return transmit(skb, flow, now, &gateway);
}

/* A client's fragment. Returns GO_ON when it has ports. */
ALONE int fragment_out(struct __sk_buff *skb, struct packet *packet, const struct onramp *onramp)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	KEY_HERE(key);
	int verdict;

	if (!packet || !key)
		return TC_ACT_SHOT;
	if (!is_later(packet))
		return GO_ON;
	key_of(packet, skb->ifindex, key);
	if (recall(packet, key, now))
		return GO_ON;
	verdict = not_ours(skb, packet, onramp); /* as its first one, whether that has come or not */
	return verdict == OURS ? hold(skb, packet, skb->ifindex, now) : verdict;
}

SEC("tc")
int HOOK(egress_out)(struct __sk_buff *skb)
{
	__u32 interface = skb->ifindex;
	struct scratch *scratch = scratch_here();
	struct packet *packet;
	struct flow_key *key;
	struct onramp *onramp;
	struct flow *flow;
	int parsed, verdict;
	__u64 now;

	if (skb->vlan_present) /* another network's, whose tag the kernel has taken off */
		return TC_ACT_UNSPEC;
	if (!scratch)
		return TC_ACT_SHOT;
	packet = &scratch->packet;
	pull_headers(skb);
	parsed = parse((void *)(long)skb->data, (void *)(long)skb->data_end, skb->len, packet);
	if (parsed == PARSED_OTHER) /* ARP and the like, and the other family */
		return hand_over(skb, HANDED_TC_EGRESS_OUT);
	onramp = bpf_map_lookup_elem(&onramps, &interface);
	if (stays_on_link(packet)) {
		if (!may_speak_on_link(skb, packet, onramp))
			return drop(skb, REASON_SPOOFED, HOOK_EGRESS_OUT, packet);
		return TC_ACT_UNSPEC;
	}
	verdict = parsed == PARSED_ERROR ? error_out(skb, packet) : NOT_A_FLOW;
	if (verdict != NOT_A_FLOW)
		return verdict;
	if (parsed != PARSED_OK && parsed != PARSED_FRAGMENT)
		return untranslatable(skb, packet, onramp);
	if (!onramp)
		return drop(skb, REASON_NO_POOL, HOOK_EGRESS_OUT, packet);
	if (unlikely(parsed == PARSED_FRAGMENT)) {
		verdict = fragment_out(skb, packet, onramp);
		if (verdict != GO_ON)
			return verdict;
	}
	key = &scratch->flow_key;
	zero_fill(key, sizeof(*key));
	key->client = packet->source;
	key->remote = packet->destination;
	key->client_port = packet->source_port;
	key->remote_port = packet->protocol == PROTOCOL_ICMP ? 0 : packet->destination_port;
	key->onramp = interface;
	key->protocol = packet->protocol;
	now = bpf_ktime_get_coarse_ns();
	flow = bpf_map_lookup_elem(&flows, key);
	if (flow && packet->ttl <= 1) /* before the claim is asked: what does not leave keeps nothing alive */
		return reject(skb, packet, onramp, REASON_HOP_LIMIT, ERROR(ICMP_TIME_EXCEEDED, 0));
	if (flow &&
	    (flow->refresh_ns <= now || (packet->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST)) ||
	     has_moved((void *)(long)skb->data, (void *)(long)skb->data_end, flow)) &&
	    (!is_client(onramp, &packet->source) || !refresh(skb, flow, key, packet, now))) {
		bpf_map_delete_elem(&flows, key);
		flow = 0;
	}
	if (!flow && is_later(packet)) {
		packet->reason = REASON_NO_FLOW;
		return untranslatable(skb, packet, onramp);
	}
	if (!flow)
		return first_packet(skb, packet, key, onramp, &scratch->trial, now);
	return send_or_drop(skb, packet, flow, onramp, now);
}

/* A packet for a port that no client has: it is for this server's own sockets. A SYN that none of them waits for is
 * dropped unsaid, as at any NAT (RFC 5382 REQ-4): the kernel would answer, and tell whoever scans what is here. */
ALONE int nobodys(struct __sk_buff *skb, const struct packet *packet, const struct claim_key *key)
{
	if (!packet || !key || packet->protocol != IPPROTO_TCP || (packet->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) != TCP_SYN)
		return TC_ACT_UNSPEC;
	if (!is_ours(packet->destination) || socket_holds(skb, key))
		return TC_ACT_UNSPEC;
	return drop(skb, REASON_UNSOLICITED, HOOK_EGRESS_IN, packet);
}

/* Is the packet for an address of the host itself, or of the other family? Then it is no reply of ours: most of what
 * comes to a server that does other work, too. What cannot be said this quickly is looked at. */
INLINE int passes_by(struct __sk_buff *skb)
{
	struct ethhdr *eth = (void *)(long)skb->data;
	ip_header *ip = (void *)(eth + 1);

	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return 0;
	return eth->h_proto != be16(ETH_P_FAMILY) || !is_ours(ip->daddr);
}

SEC("tc")
int HOOK(egress_in)(struct __sk_buff *skb)
{
	struct rewrite rewrite = {.end = END_DESTINATION};
	__u8 client_mac[ETH_ALEN], onramp_mac[ETH_ALEN];
	struct scratch *scratch = scratch_here();
	struct claim_key *key, *mapping;
	int parsed, verdict, stranger = 0;
	struct packet *packet;
	struct claim *claim;
	__u64 now;
	__u32 onramp;

	if (is_others(skb))
		return TC_ACT_UNSPEC;
	if (is_handed((void *)(long)skb->data, (void *)(long)skb->data_end))
		return hand_over(skb, HANDED_TC_EGRESS_IN);
	if (passes_by(skb))
		return TC_ACT_UNSPEC;
	if (!scratch)
		return TC_ACT_SHOT;
	packet = &scratch->packet;
	key = &scratch->claim_key;
	mapping = &scratch->mapping;
	pull_headers(skb);
	parsed = parse((void *)(long)skb->data, (void *)(long)skb->data_end, skb->len, packet);
	if (parsed == PARSED_ERROR)
		return error_in(skb, packet);
	if (parsed == PARSED_OTHER) /* its header was not at hand before */
		return hand_over(skb, HANDED_TC_EGRESS_IN);
	verdict = parsed == PARSED_FRAGMENT ? fragment_in(skb, packet) : GO_ON;
	if (verdict != GO_ON)
		return verdict;
	if (parsed != PARSED_OK && parsed != PARSED_FRAGMENT)
		return TC_ACT_UNSPEC; /* what was for us and could not be read, the director has dropped */
	zero_fill(key, sizeof(*key));
	key->local = packet->destination;
	key->remote = packet->source;
	key->local_port = packet->destination_port;
	key->remote_port = packet->protocol == PROTOCOL_ICMP ? 0 : packet->source_port;
	key->protocol = packet->protocol;
	claim = bpf_map_lookup_elem(&claims, key);
	now = bpf_ktime_get_coarse_ns();
	if (!claim || !alive(claim, now)) {
		zero_fill(mapping, sizeof(*mapping));
		mapping->protocol = key->protocol;
		mapping->local = key->local;
		mapping->local_port = key->local_port;
		claim = bpf_map_lookup_elem(&claims, mapping);
		/* Without an on-ramp a user was granted it, for sockets of this host. */
		if (!claim || !alive(claim, now) || !claim->flow.onramp)
			return nobodys(skb, packet, key);
		if (socket_holds(skb, key))
			return TC_ACT_UNSPEC;
		/* The port is that client's alone. The kernel would refuse in its name, and break what both begin. */
		if (!open_to_all(claim, key->protocol) ||
		    (claim->flow.onramp == skb->ifindex && key->protocol != IPPROTO_UDP)) /* it would answer itself */
			return drop(skb, REASON_FILTERED, HOOK_EGRESS_IN, packet);
		stranger = 1;
	}
	onramp = claim->flow.onramp;
	if (!onramp) /* a socket's, which has it itself */
		return TC_ACT_UNSPEC;
	rewrite.hops = onramp != skb->ifindex; /* else its client is a socket of this host */
	if (rewrite.hops && packet->ttl <= 1)
		return drop(skb, REASON_HOP_LIMIT, HOOK_EGRESS_IN, packet);
	verdict = rewrite.hops ? too_big(skb, packet, onramp, claim->pool) : NOT_TOO_BIG;
	if (verdict != NOT_TOO_BIG)
		return verdict;
	if (unlikely(is_fragment(packet)))
		gone_on(packet, SIDE_WIRE);
	if (!stranger && packet->protocol == IPPROTO_TCP && !is_later(packet))
		seen_reply(claim, packet, now);
	rewrite.address = claim->flow.client;
	rewrite.port = claim->flow.client_port;
	copy(client_mac, claim->client_mac, ETH_ALEN);
	copy(onramp_mac, claim->onramp_mac, ETH_ALEN);
	if ((packet->tcp_flags & TCP_SYN) && clamp_reply(skb, packet->l4_offset, claim))
		return drop(skb, REASON_INTERNAL, HOOK_EGRESS_IN, packet);
	if (translate(skb, packet, &rewrite) || (rewrite.hops && set_mac(skb, client_mac, onramp_mac)))
		return drop(skb, REASON_INTERNAL, HOOK_EGRESS_IN, packet);
	count(TRAFFIC_IN);
	return rewrite.hops ? bpf_redirect(onramp, 0) : TC_ACT_UNSPEC;
}
LICENSE;
