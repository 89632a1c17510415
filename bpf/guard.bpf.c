// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The last check before the wire, tc egress on the uplink.
 *
 * Invariant 3: no packet with a soft-unicast source leaves unless this server holds its slice right now.
 * It does not matter who made the packet: egress, a socket, or root with a raw socket. Packets with any
 * other source are not looked at further and left to whatever program is attached after this one.
 *
 * A program of this host may begin conversations from such a source only if it is in an agreement (agreement.h), which
 * makes it claim its tuple first, or excused. A TCP listener on "any" address may answer; of UDP, which does not say who
 * began, every packet counts.
 *
 * What the director at tc sends on (a neighbour's client to another's, for example) passes: this server only hands it
 * over, as XDP does without asking. It came in by the uplink, and its destination is a neighbour's.
 *
 * What leaves for a tunnel has this server's own address outside. Only the director may have put it there, which has
 * looked at what is inside, and that came in by the uplink: nobody else here can speak through a tunnel.
 */
#include "agreement.h"
#include "count.h"
#include "fragment.h"
#include "handed.h"
#include "quote.h"
#include "rewrite.h"
#include "slots.h"

INLINE int drop(struct __sk_buff *skb, enum reason reason, const struct packet *packet)
{
	count_drop(reason, HOOK_GUARD, skb->ifindex, packet);
	return TC_ACT_SHOT;
}

/* `port`: what the packet is for at its destination. A fragment goes by where it meets the others. */
INLINE int handed_over(struct __sk_buff *skb, const struct packet *packet, __u16 port)
{
	__u32 owner;

	if (skb->ingress_ifindex != skb->ifindex)
		return 0;
	return is_fragment(packet) ? in_block(packet->destination) :
				     place_of(packet->destination, port, &owner) == PLACE_ELSEWHERE;
}

/* A fragment whose source port, as far as it has one, is ours. It must also have an identification out of our slice,
 * or it could mix with a datagram of another server that shares the address. What egress sends has one; a socket's
 * packets get one here. */
INLINE int guard_fragment(struct __sk_buff *skb, struct packet *packet)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct datagram_key key;
	__u32 owner;

	if (place_of(packet->source, id_port(packet->id), &owner) == PLACE_HERE)
		return TC_ACT_UNSPEC;
	if (is_later(packet) && handed_over(skb, packet, 0))
		return TC_ACT_UNSPEC;
	key_of(packet, SIDE_GUARD, &key);
	if (is_later(packet) ? !recall(packet, &key, now) || place_of(packet->source, id_port(packet->new_id), &owner) != PLACE_HERE :
			       remember(packet, &key, &packet->source, packet->source_port, now))
		return drop(skb, REASON_GUARD_FRAGMENT, packet);
	gone_on(packet, SIDE_GUARD);
	return write_id(skb, packet) ? drop(skb, REASON_GUARD_FRAGMENT, packet) : TC_ACT_UNSPEC;
}

/* Could the packet begin a conversation? Of UDP, each one. */
INLINE int may_begin(const struct packet *packet)
{
	return packet->protocol == IPPROTO_TCP ? (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN :
						 packet->protocol == IPPROTO_UDP;
}

/* Is it sent by a socket that nobody agreed with? Packets that came in carry the socket of their sender, perhaps: of
 * another network namespace. A test run has a socket of no type. */
ALONE int is_intruder(struct __sk_buff *skb)
{
	__u32 first = 0;
	struct settings *self = bpf_map_lookup_elem(&settings, &first);
	struct bpf_sock *sock = skb->sk;

	if (!self || !self->netns_cookie || skb->ingress_ifindex || !sock)
		return 0;
	sock = bpf_sk_fullsock(sock);
	if (!sock || !sock->type)
		return 0;
	return agreement_of_packet(skb).kind == AGREEMENT_NONE;
}

SEC("tc")
int HOOK(guard)(struct __sk_buff *skb)
{
	struct packet packet;
	enum reason reason;
	__u16 port, to_port;
	__u32 owner;
	int parsed;

	pull_headers(skb);
	/* A raw socket can write tags in front of anything, and routers take priority tags (VLAN 0) for none. */
	parsed = parse_behind((void *)(long)skb->data, (void *)(long)skb->data_end, skb->len, 2, &packet);
	if (parsed == PARSED_OTHER)
		return hand_over(skb, HANDED_TC_GUARD);
	port = packet.source_port;
	to_port = packet.destination_port;
	if (parsed == PARSED_ERROR) {
		struct quote quote;

		pull(skb, QUOTE_MAX);
		/* An error about a packet that came to one of our ports leaves from that port, so to speak. */
		if (parse_quote((void *)(long)skb->data, (void *)(long)skb->data_end, &packet, &quote) ||
		    !same_address(quote.destination, packet.source))
			parsed = refuse(&packet, REASON_ICMP_ERROR);
		port = quote.destination_port;
		to_port = quote.source_port;
	}
	if (parsed == PARSED_DROP) {
		/* l4_offset is 0 when the header could not even be read: it could say anything. */
		if (packet.l4_offset && !is_ours(packet.source))
			return TC_ACT_UNSPEC;
		return drop(skb, packet.reason == REASON_MALFORMED ? REASON_MALFORMED :
				 packet.reason == REASON_FRAGMENT ? REASON_GUARD_FRAGMENT : REASON_GUARD_PROTOCOL, &packet);
	}
	if (is_later(&packet)) /* has no port; what follows from it, the identification says */
		return in_block(packet.source) ? guard_fragment(skb, &packet) : TC_ACT_UNSPEC;
	switch (place_of(packet.source, port, &owner)) {
	case PLACE_NOT_OURS:
		if (skb->ingress_ifindex != skb->ifindex && enters_tunnel(&packet))
			return drop(skb, REASON_GUARD_TUNNEL, &packet);
		return TC_ACT_UNSPEC;
	case PLACE_HERE:
		if (parsed != PARSED_ERROR && may_begin(&packet) && is_intruder(skb))
			return drop(skb, REASON_GUARD_SOCKET, &packet);
		return is_fragment(&packet) ? guard_fragment(skb, &packet) : TC_ACT_UNSPEC;
	case PLACE_ELSEWHERE:
		reason = REASON_GUARD_FOREIGN;
		break;
	case PLACE_EXPIRED:
		reason = REASON_GUARD_EXPIRED;
		break;
	default:
		reason = REASON_GUARD_NOBODY;
	}
	return handed_over(skb, &packet, to_port) ? TC_ACT_UNSPEC : drop(skb, reason, &packet);
}

LICENSE;
