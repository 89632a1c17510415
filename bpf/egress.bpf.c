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
#include "flow.h"
#include "icmp.h"
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

INLINE int send_or_drop(struct __sk_buff *skb, const struct packet *packet, struct flow *flow, __u64 now)
{
	int verdict = TC_ACT_SHOT;
	enum reason reason = send(skb, packet, flow, now, &verdict);

	return reason ? drop(skb, reason, HOOK_EGRESS_OUT, packet) : verdict;
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

INLINE int first_packet(struct __sk_buff *skb, const struct packet *packet, const struct flow_key *key,
			const struct onramp *onramp, __u64 now)
{
	struct flow flow = {};
	__u32 gateway, error;
	enum way way;
	int reason;

	if (in_block(packet->destination)) /* would be an untranslated packet to one of our own addresses */
		return drop(skb, REASON_HAIRPIN, HOOK_EGRESS_OUT, packet);
	way = route(skb, packet, &flow, now, &gateway);
	if (for_host(packet, onramp, way))
		return pass_to_host();
	if (way != WAY_UPLINK)
		return reject(skb, packet, onramp, REASON_NO_ROUTE, ERROR(ICMP_UNREACHABLE, UNREACHABLE_NET));
	if (packet->ttl <= 1)
		return reject(skb, packet, onramp, REASON_HOP_LIMIT, ERROR(ICMP_TIME_EXCEEDED, 0));
	if (!begins(packet))
		return drop(skb, REASON_NO_FLOW, HOOK_EGRESS_OUT, packet);
	reason = open_flow(skb, key, &flow, onramp->pool, now);
	error = packet->protocol == IPPROTO_TCP ? UNREACHABLE_HOST : UNREACHABLE_PROHIBITED;
	if (reason)
		return reject(skb, packet, onramp, reason, ERROR(ICMP_UNREACHABLE, error));
	return send_or_drop(skb, packet, &flow, now);
}

/* A client packet that cannot be translated: when it is for the server itself, that is the server's matter. */
INLINE int untranslatable(struct __sk_buff *skb, const struct packet *packet, const struct onramp *onramp)
{
	struct flow unused = {};
	__u32 gateway;

	if (packet->reason != REASON_MALFORMED && !in_block(packet->destination) &&
	    for_host(packet, onramp, route(skb, packet, &unused, 0, &gateway)))
		return pass_to_host();
	return drop(skb, packet->reason, HOOK_EGRESS_OUT, packet);
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
	__u64 now;
	int parsed;

	pull_headers(skb);
	parsed = parse((void *)(long)skb->data, (void *)(long)skb->data_end, skb->len, &packet);
	if (parsed == PARSED_OTHER) /* ARP and the like */
		return TC_ACT_UNSPEC;
	if (parsed == PARSED_IPV6)
		return ipv6_out(skb, &packet);
	if ((packet.destination & be32(0xf0000000)) == be32(0xe0000000) || packet.destination == ~0u)
		return TC_ACT_UNSPEC; /* multicast, broadcast: never forwarded, perhaps the host's (DHCP) */
	onramp = bpf_map_lookup_elem(&onramps, &interface);
	if (parsed == PARSED_DROP)
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
	if (flow &&
	    (flow->refresh_ns <= now || (packet.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST)) || has_moved(skb, flow)) &&
	    !refresh(skb, flow, &key, packet.tcp_flags, now)) {
		bpf_map_delete_elem(&flows, &key);
		flow = 0;
	}
	if (!flow)
		return first_packet(skb, &packet, &key, onramp, now);
	return send_or_drop(skb, &packet, flow, now);
}

/* A reply keeps a TCP claim alive and moves its state on. Replies of other protocols do not: whoever knows
 * the port could keep it taken for ever (RFC 4787 REQ-6 leaves it open). */
INLINE void seen_reply(struct claim *claim, const struct packet *packet, __u64 now, __u64 expires)
{
	__u32 state = seen_in(claim->state, packet->tcp_flags), pool_key = claim->pool;
	struct pool *pool = bpf_map_lookup_elem(&pools, &pool_key);
	struct flow_key owner = claim->flow;
	__u64 lifetime;

	if (!pool)
		return;
	lifetime = lifetime_ns(pool, IPPROTO_TCP, state);
	if ((state != claim->state || expires < now + lifetime - lifetime / REFRESH_PARTS) &&
	    extend(claim, &owner, now, now + lifetime))
		claim->state = state;
}

SEC("tc")
int egress_in(struct __sk_buff *skb)
{
	struct rewrite rewrite = {.end = END_DESTINATION};
	__u8 client_mac[ETH_ALEN], onramp_mac[ETH_ALEN];
	struct claim_key key = {};
	struct packet packet;
	struct claim *claim;
	__u64 now, expires;
	__u32 onramp;

	pull_headers(skb);
	if (parse((void *)(long)skb->data, (void *)(long)skb->data_end, skb->len, &packet) != PARSED_OK)
		return TC_ACT_UNSPEC; /* what was for us and could not be read, the director has dropped */
	key.local = packet.destination;
	key.remote = packet.source;
	key.local_port = packet.destination_port;
	key.remote_port = packet.protocol == IPPROTO_ICMP ? 0 : packet.source_port;
	key.protocol = packet.protocol;
	claim = bpf_map_lookup_elem(&claims, &key);
	if (!claim)
		return TC_ACT_UNSPEC;
	now = bpf_ktime_get_coarse_ns();
	expires = *(volatile __u64 *)&claim->expires_ns;
	if (expires <= now || expires == CLAIM_BUSY)
		return TC_ACT_UNSPEC;
	if (packet.ttl <= 1)
		return drop(skb, REASON_HOP_LIMIT, HOOK_EGRESS_IN, &packet);
	if (packet.protocol == IPPROTO_TCP)
		seen_reply(claim, &packet, now, expires);
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
