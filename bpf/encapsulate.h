/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Sending a packet on to the server that owns its slice, through a tunnel where no switch joins the two (tunnel.h).
 *
 * In XDP only what is plain is done: the next hop is known, the packet fits. Everything else is passed on untouched, and
 * the same decision is made again at tc (`remote`), where the kernel can be asked for a neighbour, and errors be made.
 */
#pragma once

#include "cut.h"
#include "direct.h"
#include "icmp.h"
#include "mute.h"

enum hop_state {
	HOP_READY,
	HOP_UNKNOWN, /* the kernel does not know its MAC address yet */
	HOP_NONE,    /* no route, or one that does not leave by the uplink */
};

/* Asks the kernel for the next hop, as for a packet of its own: forwarding has to be on for `lo`, and means nothing
 * there. `gateway`: its address. */
APART int find_hop(void *context, __u32 owner, __u32 from, __u32 to, __u32 *gateway)
{
	struct bpf_fib_lookup fib = {.family = 2 /* AF_INET */, .l4_protocol = IPPROTO_UDP, .ifindex = LOOPBACK_INDEX};
	struct settings *self;
	__u32 first = 0;
	struct path *path;
	struct hop *hop;
	long result;
	__u64 now;

	fib.ipv4_src = from;
	fib.ipv4_dst = to;
	fib.tot_len = 1; /* asks for the MTU */
	result = bpf_fib_lookup(context, &fib, sizeof(fib), 0);
	self = bpf_map_lookup_elem(&settings, &first);
	hop = bpf_map_lookup_elem(&hops, &owner);
	path = bpf_map_lookup_elem(&paths, &owner);
	if (!self || !hop || !path || fib.ifindex != self->uplink ||
	    (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH))
		return HOP_NONE;
	*gateway = fib.ipv4_dst;
	now = bpf_ktime_get_coarse_ns();
	hop->mtu = result == BPF_FIB_LKUP_RET_SUCCESS ? fib.mtu_result : self->uplink_mtu;
	if (path->until_ns > now && path->mtu < hop->mtu)
		hop->mtu = path->mtu;
	if (result == BPF_FIB_LKUP_RET_NO_NEIGH)
		return HOP_UNKNOWN;
	copy(hop->destination, fib.dmac, ETH_ALEN);
	copy(hop->source, fib.smac, ETH_ALEN);
	hop->until_ns = now + TUNNEL_HOP_NS;
	return HOP_READY;
}

/* A number that is the same for all packets of a flow. */
INLINE __u32 flow_hash(const struct packet *packet)
{
	__u32 ends = is_fragment(packet) ? id_number(packet) :
					   (__u32)packet->source_port << 16 | packet->destination_port;

	return mix(mix(address_number(packet->source), address_number(packet->destination)), ends) * 0x85ebca6bu;
}

INLINE __u32 whole_bytes(const struct packet *packet)
{
	return packet->l4_offset - ETH_HLEN + packet->l4_bytes;
}

/* XDP, `me` is where this server's tunnels end. Returns the verdict; XDP_PASS: `remote` has to see to it. */
INLINE int encapsulate_frame(struct xdp_md *xdp, const struct packet *packet, __u32 owner, const struct server *me,
			     const struct server *server)
{
	struct ethhdr *eth = (void *)(long)xdp->data;
	ip_header *ip = (void *)(eth + 1);
	struct hop *hop = bpf_map_lookup_elem(&hops, &owner);
	struct tunnel_header *outer;
	__u32 bytes = whole_bytes(packet), gateway;
	__u8 class;

	if (!hop || packet->ttl <= 1 || (void *)(ip + 1) > (void *)(long)xdp->data_end)
		return XDP_PASS;
	if (unlikely(hop->until_ns <= bpf_ktime_get_coarse_ns()) &&
	    find_hop(xdp, owner, me->address, server->address, &gateway) != HOP_READY)
		return XDP_PASS;
	if (bytes + TUNNEL_BYTES > hop->mtu)
		return XDP_PASS;
	class = class_of(ip);
	if (bpf_xdp_adjust_head(xdp, -TUNNEL_BYTES))
		return XDP_PASS;
	eth = (void *)(long)xdp->data;
	outer = (void *)(eth + 1);
	ip = (void *)(outer + 1);
	if ((void *)(ip + 1) > (void *)(long)xdp->data_end)
		return XDP_ABORTED; /* never: it was longer before */
	decrease_ttl(ip);
	copy(eth->h_dest, hop->destination, ETH_ALEN);
	copy(eth->h_source, hop->source, ETH_ALEN);
	eth->h_proto = be16(ETH_P_IP);
	write_tunnel(outer, me->address, server->address, bytes, class, flow_hash(packet));
	count(TRAFFIC_STEERED);
	count(TRAFFIC_TUNNEL_OUT);
	return XDP_TX;
}

/* The packet does not fit behind the tunnel's header. It is cut where that is allowed: the pieces arrive in its stead,
 * and go the way of fragments. Else its sender hears what fits. Returns the verdict. */
INLINE int too_big_for_tunnel(struct __sk_buff *skb, const struct packet *packet, __u32 mtu, enum hook hook)
{
	__u32 first = 0;
	struct settings *self = bpf_map_lookup_elem(&settings, &first);
	struct server *me = tunnel_end();
	ip_address *own;

	if (!self || !me)
		return TC_ACT_SHOT;
	if (!cut_up(skb, packet, mtu, 0))
		return TC_ACT_SHOT;
	count_drop(REASON_TOO_BIG, hook, skb->ifindex, packet);
	/* No error about an error, nor about a later fragment (RFC 1122 section 3.2.2). */
	if (is_later(packet) || muted(packet, skb->ifindex, 0) ||
	    (packet->protocol == PROTOCOL_ICMP && packet->icmp_type != ICMP_ECHO && packet->icmp_type != ICMP_ECHO_REPLY))
		return TC_ACT_SHOT;
#if FAMILY == 4
	own = &me->address;
#else
	own = (void *)self->address6;
#endif
	if (icmp_error(skb, packet, own, mtu << 16 | ERROR(ICMP_TOO_BIG, UNREACHABLE_TOO_BIG)))
		return TC_ACT_SHOT;
	return bpf_redirect_neigh(skb->ifindex, 0, 0, 0); /* not to whom it came from: a neighbour may have steered it */
}

/* Makes room in front of the packet. GSO buffers stay whole, and each segment will get the header. `ready`: its next hop
 * is known. */
INLINE int make_way(struct __sk_buff *skb, int ready)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;
	long error = bpf_skb_adjust_room(skb, TUNNEL_BYTES, BPF_ADJ_ROOM_MAC,
					 flags | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP);

	/* EALREADY: it came out of a tunnel of which the sender's stack, on the same machine, has told ours. Without the flags
	 * the buffer goes on as what was in it, which only matters to who has to find its neighbour. */
	if (error == -114 && (FAMILY == 4 || ready) && !skb->gso_size)
		error = bpf_skb_adjust_room(skb, TUNNEL_BYTES, BPF_ADJ_ROOM_MAC, flags);
	return error != 0;
}

/* tc. Returns the verdict. */
INLINE int encapsulate(struct __sk_buff *skb, const struct packet *packet, __u32 owner, const struct server *server,
		       enum hook hook)
{
	struct bpf_redir_neigh neighbour = {};
	struct tunnel_header outer = {};
	struct server *me = tunnel_end();
	struct hop *hop = bpf_map_lookup_elem(&hops, &owner);
	int state = HOP_READY;
	__u32 bytes = whole_bytes(packet), gateway = 0;
	struct ethhdr *eth;
	ip_header *ip;
	__u8 class;

	if (hop && me && hop->until_ns <= bpf_ktime_get_coarse_ns())
		state = find_hop(skb, owner, me->address, server->address, &gateway);
	eth = (void *)(long)skb->data;
	ip = (void *)(eth + 1);
	if (!hop || !me || state == HOP_NONE || (void *)(ip + 1) > (void *)(long)skb->data_end) {
		count_drop(REASON_NO_NEIGHBOUR, hook, skb->ifindex, packet);
		return TC_ACT_SHOT;
	}
	if (packet_bytes(skb, packet) + TUNNEL_BYTES > hop->mtu)
		return too_big_for_tunnel(skb, packet, hop->mtu - TUNNEL_BYTES, hook);
	class = class_of(ip);
	decrease_ttl(ip);
	write_tunnel(&outer, me->address, server->address, bytes, class, flow_hash(packet));
	if (bytes + TUNNEL_BYTES > 0xffff || make_way(skb, state == HOP_READY) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN, &outer, sizeof(outer), 0))
		goto internal;
	eth = (void *)(long)skb->data;
	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		goto internal;
	eth->h_proto = be16(ETH_P_IP);
	copy(eth->h_dest, hop->destination, ETH_ALEN);
	copy(eth->h_source, hop->source, ETH_ALEN);
	count(TRAFFIC_STEERED);
	count(TRAFFIC_TUNNEL_OUT);
	if (state == HOP_READY)
		return bpf_redirect(skb->ifindex, 0);
	neighbour.nh_family = 2; /* AF_INET */
	neighbour.ipv4_nh = gateway;
	return bpf_redirect_neigh(skb->ifindex, &neighbour, sizeof(neighbour), 0);
internal:
	count_drop(REASON_INTERNAL, hook, skb->ifindex, packet);
	return TC_ACT_SHOT;
}

/* tc: sends the packet on to the server `owner`. Returns the verdict. */
ALONE int steer(struct __sk_buff *skb, const struct packet *packet, __u32 owner, int hook)
{
	struct server *server = bpf_map_lookup_elem(&servers, &owner);
	enum reason reason;

	if (!packet)
		return TC_ACT_SHOT;
	if (server && server->kind == SERVER_REMOTE && packet->ttl > 1)
		return encapsulate(skb, packet, owner, server, hook);
	reason = server && server->kind == SERVER_REMOTE ?
			 REASON_STEER_LOOP :
			 aim((void *)(long)skb->data, (void *)(long)skb->data_end, server, packet);
	if (!reason)
		return bpf_redirect(skb->ifindex, 0);
	count_drop(reason, hook, skb->ifindex, packet);
	return TC_ACT_SHOT;
}
