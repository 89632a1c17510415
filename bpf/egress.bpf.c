// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Translation of forwarded packets.
 *
 *   egress_out   tc ingress of an on-ramp: a client's packet. Flow known -> rewrite, send out of the uplink
 *                (through the guard). New -> find and claim a free port first.
 *   egress_in    tc ingress of the uplink, after the director said "here": a reply whose claim belongs to a
 *                flow is rewritten and handed to the client; everything else goes up to the kernel stack.
 *
 * Neither conntrack nor a routing rule takes part. Packets for the server itself are passed up untouched.
 */
#include "icmp.h"
#include "open.h"
#include "quote.h"
#include "slots.h"

#define ERROR(type, code) ((type) << 8 | (code))

INLINE int drop(struct __sk_buff *skb, enum reason reason, enum hook hook, const struct packet *packet)
{
	count_drop(reason, hook, skb->ifindex, packet);
	return TC_ACT_SHOT;
}

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
	return icmp_error(skb, packet, onramp->address, error);
}

INLINE int send_or_drop(struct __sk_buff *skb, const struct packet *packet, struct flow *flow,
			const struct onramp *onramp, __u64 now)
{
	int verdict = TC_ACT_SHOT;
	enum reason reason = send(skb, packet, flow, now, &verdict);

	if (!reason)
		return verdict;
	if (reason == REASON_TOO_BIG)
		return reject(skb, packet, onramp, reason,
			      (__u32)flow->hop_mtu << 16 | ERROR(ICMP_UNREACHABLE, UNREACHABLE_TOO_BIG));
	return drop(skb, reason, HOOK_EGRESS_OUT, packet);
}

/* The kernel says nothing about routes while the on-ramp does not forward: for a moment when an agent starts or
 * stops. Packets for the server itself are not its matter even then; its address there is the one clients use. */
INLINE int for_host(const struct packet *packet, const struct onramp *onramp, enum way way)
{
	return way == WAY_HOST || (way == WAY_OFF && onramp && packet->destination == onramp->address);
}

/* May this packet begin a conversation? */
INLINE int begins(const struct packet *packet)
{
	if (packet->protocol == IPPROTO_TCP)
		return (packet->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN;
	return packet->protocol == IPPROTO_UDP || packet->icmp_type == ICMP_ECHO;
}

/* A SYN/ACK to a SYN that came in through an endpoint-independent mapping (RFC 5382 REQ-3). */
INLINE int answers(const struct packet *packet, const struct flow_key *key)
{
	struct flow_key mapping = *key;

	mapping.remote = mapping.remote_port = 0;
	return packet->protocol == IPPROTO_TCP &&
	       (packet->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == (TCP_SYN | TCP_ACK) &&
	       bpf_map_lookup_elem(&flows, &mapping);
}

INLINE int first_packet(struct __sk_buff *skb, const struct packet *packet, const struct flow_key *key,
			const struct onramp *onramp, __u64 now)
{
	struct flow flow = {};
	__u32 gateway, error;
	enum way way;
	int reason;

	way = route(skb, packet, &flow, now, &gateway);
	if (for_host(packet, onramp, way))
		return pass_to_host();
	if (way != WAY_UPLINK)
		return reject(skb, packet, onramp, REASON_NO_ROUTE, ERROR(ICMP_UNREACHABLE, UNREACHABLE_NET));
	if (packet->ttl <= 1)
		return reject(skb, packet, onramp, REASON_HOP_LIMIT, ERROR(ICMP_TIME_EXCEEDED, 0));
	if (!begins(packet) && !answers(packet, key))
		return drop(skb, REASON_NO_FLOW, HOOK_EGRESS_OUT, packet);
	follow(packet, &flow.acknowledged, &flow.sent);
	reason = open_flow(skb, key, &flow, onramp->pool, now);
	error = packet->protocol == IPPROTO_TCP ? UNREACHABLE_HOST : UNREACHABLE_PROHIBITED;
	if (reason)
		return reject(skb, packet, onramp, reason, ERROR(ICMP_UNREACHABLE, error));
	return send_or_drop(skb, packet, &flow, onramp, now);
}

/* A client packet that cannot be translated: when it is for the server itself, that is the server's matter. */
APART int untranslatable(struct __sk_buff *skb, const struct packet *packet, const struct onramp *onramp)
{
	struct flow unused = {};
	__u32 gateway;

	if (packet->reason != REASON_MALFORMED && !in_block(packet->destination) &&
	    for_host(packet, onramp, route(skb, packet, &unused, 0, &gateway)))
		return pass_to_host();
	return drop(skb, packet->reason, HOOK_EGRESS_OUT, packet);
}

#define NOT_A_FLOW -2

/* A client's (or a router's behind it) error about a packet that we gave it. Its quote came to the client, so
 * the quoted destination finds the flow. */
APART int error_out(struct __sk_buff *skb, struct packet *packet)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u64 now = bpf_ktime_get_coarse_ns();
	struct flow_key key = {};
	struct flow *flow = 0;
	struct quote quote;
	__u32 gateway = 0;

	packet->reason = REASON_ICMP_ERROR;
	if (!parse_quote(data, end, packet, &quote)) {
		key.client = quote.destination;
		key.remote = quote.source;
		key.client_port = quote.destination_port;
		key.remote_port = quote.protocol == IPPROTO_ICMP ? 0 : quote.source_port;
		key.onramp = skb->ifindex;
		key.protocol = quote.protocol;
		flow = bpf_map_lookup_elem(&flows, &key);
	}
	if (!flow || packet->destination != quote.source || packet->ttl <= 1)
		return NOT_A_FLOW;
	if (flow->hop_ns <= now && route(skb, packet, flow, now, &gateway) != WAY_UPLINK)
		return drop(skb, REASON_NO_ROUTE, HOOK_EGRESS_OUT, packet);
	if (translate_error(data, end, packet, &quote, 0, flow->local, flow->local_port))
		return drop(skb, REASON_INTERNAL, HOOK_EGRESS_OUT, packet);
	return transmit(skb, flow, now, gateway);
}

/* Neighbour discovery and other link-local IPv6 is the host's; the rest would be an egress nobody chose. */
INLINE int ipv6_out(struct __sk_buff *skb, const struct packet *packet)
{
	__u8 destination[2] = {};

	bpf_skb_load_bytes(skb, ETH_HLEN + 24, destination, sizeof(destination));
	if (destination[0] == 0xff || (destination[0] == 0xfe && (destination[1] & 0xc0) == 0x80))
		return TC_ACT_UNSPEC;
	return drop(skb, REASON_FAMILY, HOOK_EGRESS_OUT, packet);
}

SEC("tc")
int egress_out(struct __sk_buff *skb)
{
	__u32 interface = skb->ifindex;
	struct flow_key key = {};
	struct packet packet;
	struct onramp *onramp;
	struct flow *flow;
	int parsed, verdict;
	__u64 now;

	pull_headers(skb);
	parsed = parse((void *)(long)skb->data, (void *)(long)skb->data_end, skb->len, &packet);
	if (parsed == PARSED_OTHER) /* ARP and the like */
		return TC_ACT_UNSPEC;
	if (parsed == PARSED_IPV6)
		return ipv6_out(skb, &packet);
	if ((packet.destination & be32(0xf0000000)) == be32(0xe0000000) || packet.destination == ~0u)
		return TC_ACT_UNSPEC; /* multicast, broadcast: never forwarded, perhaps the host's (DHCP) */
	onramp = bpf_map_lookup_elem(&onramps, &interface);
	verdict = parsed == PARSED_ERROR ? error_out(skb, &packet) : NOT_A_FLOW;
	if (verdict != NOT_A_FLOW)
		return verdict;
	if (parsed != PARSED_OK)
		return untranslatable(skb, &packet, onramp);
	if (!onramp)
		return drop(skb, REASON_NO_POOL, HOOK_EGRESS_OUT, &packet);
	key.client = packet.source;
	key.remote = packet.destination;
	key.client_port = packet.source_port;
	key.remote_port = packet.protocol == IPPROTO_ICMP ? 0 : packet.destination_port;
	key.onramp = interface;
	key.protocol = packet.protocol;
	now = bpf_ktime_get_coarse_ns();
	flow = bpf_map_lookup_elem(&flows, &key);
	if (flow && packet.ttl <= 1) /* before the claim is asked: what does not leave keeps nothing alive */
		return reject(skb, &packet, onramp, REASON_HOP_LIMIT, ERROR(ICMP_TIME_EXCEEDED, 0));
	if (flow && (flow->refresh_ns <= now || (packet.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST))) &&
	    !refresh(flow, &key, &packet, now)) {
		bpf_map_delete_elem(&flows, &key);
		flow = 0;
	}
	if (!flow)
		return first_packet(skb, &packet, &key, onramp, now);
	return send_or_drop(skb, &packet, flow, onramp, now);
}

/* A reply keeps a TCP claim alive and moves its state on. Replies of other protocols do not: whoever knows
 * the port could keep it taken for ever (RFC 4787 REQ-6 leaves it open). */
APART void seen_reply(struct claim *claim, const struct packet *packet, __u64 now)
{
	__u32 state, pool_key = claim->pool;
	struct flow_key owner = claim->flow;
	__u8 flags = packet->tcp_flags;
	struct pool *pool;
	struct flow *flow;
	__u64 lifetime;

	follow(packet, &claim->acknowledged, &claim->sent);
	if (flags & TCP_RST) {
		flow = bpf_map_lookup_elem(&flows, &owner);
		if (!flow || !believable(packet, flow->acknowledged, claim->sent, flow->sent, !(claim->state & SEEN_IN)))
			return;
	}
	state = seen_in(claim->state, flags);
	if (state == claim->state && claim->refresh_in_ns > now)
		return;
	pool = bpf_map_lookup_elem(&pools, &pool_key);
	if (!pool)
		return;
	lifetime = lifetime_ns(pool, IPPROTO_TCP, state);
	if (!extend(claim, &owner, now, now + lifetime))
		return;
	move_on(claim, state);
	claim->refresh_in_ns = now + refresh_ns(pool, lifetime);
}

/* An error about a packet that left from one of our ports: to the client, when a flow sent it. */
APART int error_in(struct __sk_buff *skb, const struct packet *packet)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u8 client_mac[ETH_ALEN], onramp_mac[ETH_ALEN];
	struct claim_key key = {};
	struct claim *claim;
	struct quote quote;
	__u32 onramp;

	if (parse_quote(data, end, packet, &quote) || quote.source != packet->destination)
		return TC_ACT_UNSPEC;
	key.local = quote.source;
	key.remote = quote.destination;
	key.local_port = quote.source_port;
	key.remote_port = quote.protocol == IPPROTO_ICMP ? 0 : quote.destination_port;
	key.protocol = quote.protocol;
	claim = bpf_map_lookup_elem(&claims, &key);
	if (!claim || !alive(claim, bpf_ktime_get_coarse_ns()))
		return TC_ACT_UNSPEC;
	if (packet->ttl <= 1)
		return drop(skb, REASON_HOP_LIMIT, HOOK_EGRESS_IN, packet);
	onramp = claim->flow.onramp;
	copy(client_mac, claim->client_mac, ETH_ALEN);
	copy(onramp_mac, claim->onramp_mac, ETH_ALEN);
	if (translate_error(data, end, packet, &quote, 1, claim->flow.client, claim->flow.client_port) ||
	    set_mac(skb, client_mac, onramp_mac))
		return drop(skb, REASON_INTERNAL, HOOK_EGRESS_IN, packet);
	count(TRAFFIC_IN);
	return bpf_redirect(onramp, 0);
}

/* May anybody send to this mapping? */
INLINE int open_to_all(const struct claim *claim, __u8 protocol)
{
	__u32 pool_key = claim->pool;
	struct pool *pool = bpf_map_lookup_elem(&pools, &pool_key);

	return pool && pool->behaviour & (protocol == IPPROTO_TCP ? BEHAVIOUR_FILTERING_TCP :
					  protocol == IPPROTO_UDP ? BEHAVIOUR_FILTERING_UDP :
								    BEHAVIOUR_FILTERING_ICMP);
}

SEC("tc")
int egress_in(struct __sk_buff *skb)
{
	struct rewrite rewrite = {.end = END_DESTINATION};
	__u8 client_mac[ETH_ALEN], onramp_mac[ETH_ALEN];
	struct claim_key key = {};
	struct packet packet;
	struct claim *claim;
	__u64 now;
	__u32 onramp;
	int parsed;

	pull_headers(skb);
	parsed = parse((void *)(long)skb->data, (void *)(long)skb->data_end, skb->len, &packet);
	if (parsed == PARSED_ERROR)
		return error_in(skb, &packet);
	if (parsed != PARSED_OK)
		return TC_ACT_UNSPEC; /* what was for us and could not be read, the director has dropped */
	key.local = packet.destination;
	key.remote = packet.source;
	key.local_port = packet.destination_port;
	key.remote_port = packet.protocol == IPPROTO_ICMP ? 0 : packet.source_port;
	key.protocol = packet.protocol;
	claim = bpf_map_lookup_elem(&claims, &key);
	now = bpf_ktime_get_coarse_ns();
	if (!claim || !alive(claim, now)) {
		key.remote = key.remote_port = 0;
		claim = bpf_map_lookup_elem(&claims, &key);
		if (!claim || !alive(claim, now) || !open_to_all(claim, key.protocol))
			return TC_ACT_UNSPEC;
	}
	if (packet.ttl <= 1)
		return drop(skb, REASON_HOP_LIMIT, HOOK_EGRESS_IN, &packet);
	if (key.remote && packet.protocol == IPPROTO_TCP)
		seen_reply(claim, &packet, now);
	rewrite.address = claim->flow.client;
	rewrite.port = claim->flow.client_port;
	onramp = claim->flow.onramp;
	copy(client_mac, claim->client_mac, ETH_ALEN);
	copy(onramp_mac, claim->onramp_mac, ETH_ALEN);
	if (translate(skb, &packet, &rewrite) || set_mac(skb, client_mac, onramp_mac))
		return drop(skb, REASON_INTERNAL, HOOK_EGRESS_IN, &packet);
	count(TRAFFIC_IN);
	return bpf_redirect(onramp, 0);
}
LICENSE;
