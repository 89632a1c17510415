/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Taking a packet out of a tunnel that ends here (tunnel.h), at tc, in front of everything else.
 *
 * Only tunnels from servers of the ledger are opened, and only where this server has any; what they held is marked, and
 * then looked at like any packet from the wire. The director lets it stay here and sends it nowhere else: two servers whose
 * tables disagree must not play with it. Also: what routers on the way say about the tunnel's own packets.
 */
#pragma once

#include "count.h"
#include "quote.h"
#include "rewrite.h"
#include "tunnel.h"

#define TUNNEL_NONE -2   /* not the end of a tunnel */
#define TUNNEL_OPENED -3 /* the buffer is now what was in it */

INLINE int refuse_tunnel(struct __sk_buff *skb, const struct packet *packet, enum reason reason)
{
	count_drop(reason, HOOK_DIRECTOR, skb->ifindex, packet);
	return TC_ACT_SHOT;
}

/* May it be a packet for decapsulate? Asked of every packet. */
INLINE int may_be_tunnel(int parsed, const struct packet *packet)
{
	return FAMILY == 4 && parsed == PARSED_OK && packet->protocol == IPPROTO_UDP &&
	       packet->destination_port == be16(TUNNEL_PORT);
}

#if FAMILY == 4

/* Returns the verdict, or one of the above. */
ALONE int decapsulate(struct __sk_buff *skb, const struct packet *packet)
{
	__u32 front, inside, source;
	struct server *me;
	struct ethhdr *eth;
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;
	__u8 version = 0;

	if (!packet)
		return TC_ACT_SHOT;
	me = tunnel_end();
	if (!me || packet->destination != me->address)
		return TUNNEL_NONE;
	source = packet->source;
	if (!bpf_map_lookup_elem(&peers, &source))
		return refuse_tunnel(skb, packet, REASON_TUNNEL_STRANGER);
	front = packet->l4_offset - ETH_HLEN + sizeof(struct udphdr);
	inside = packet->l4_bytes - sizeof(struct udphdr);
	if (bpf_skb_load_bytes(skb, ETH_HLEN + front, &version, sizeof(version)))
		return refuse_tunnel(skb, packet, REASON_MALFORMED);
	version >>= 4;
	if ((version != 4 || inside < sizeof(struct iphdr)) && (version != 6 || inside < 40))
		return refuse_tunnel(skb, packet, REASON_MALFORMED);
	flags |= version == 4 ? BPF_F_ADJ_ROOM_DECAP_L3_IPV4 : BPF_F_ADJ_ROOM_DECAP_L3_IPV6;
	if (bpf_skb_adjust_room(skb, -(int)front, BPF_ADJ_ROOM_MAC, flags))
		return refuse_tunnel(skb, packet, REASON_INTERNAL);
	eth = (void *)(long)skb->data;
	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return refuse_tunnel(skb, packet, REASON_INTERNAL);
	mark_opened(eth);
	eth->h_proto = version == 4 ? be16(ETH_P_IP) : be16(ETH_P_IPV6);
	count(TRAFFIC_TUNNEL_IN);
	return TUNNEL_OPENED;
}

/* An ICMP error that is for this server: a router on the way to a peer carries less? The kernel, which has no socket for
 * the tunnel's packets, would not remember. The error itself goes on to it. */
ALONE int learn_path(struct __sk_buff *skb, const struct packet *packet)
{
	struct icmp_header *icmp;
	void *data, *end;
	struct server *me;
	struct quote quote;
	__u32 peer, *number, mtu;
	struct path *path;
	struct hop *hop;

	if (!packet || packet->icmp_type != ICMP_UNREACHABLE)
		return 0;
	me = tunnel_end();
	if (!me || packet->destination != me->address)
		return 0;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	icmp = data + (packet->l4_offset & OFFSET_MAX);
	keep(icmp);
	if ((void *)(icmp + 1) > end || icmp->code != 4 || parse_quote(data, end, packet, &quote) ||
	    quote.source != me->address || quote.protocol != IPPROTO_UDP || quote.destination_port != be16(TUNNEL_PORT))
		return 0;
	mtu = be16(icmp->sequence);
	peer = quote.destination;
	number = bpf_map_lookup_elem(&peers, &peer);
	path = number ? bpf_map_lookup_elem(&paths, number) : 0;
	hop = number ? bpf_map_lookup_elem(&hops, number) : 0;
	if (!path || !hop)
		return 0;
	path->mtu = mtu > TUNNEL_PATH_LEAST ? mtu : TUNNEL_PATH_LEAST;
	path->until_ns = bpf_ktime_get_coarse_ns() + TUNNEL_PATH_NS;
	hop->until_ns = 0; /* on this CPU at once, on others within a second */
	return 0;
}

#else

INLINE int decapsulate(struct __sk_buff *skb, const struct packet *packet)
{
	return TUNNEL_NONE;
}

INLINE int learn_path(struct __sk_buff *skb, const struct packet *packet)
{
	return 0;
}

#endif
