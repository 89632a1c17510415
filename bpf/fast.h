/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The short way for established flows, in XDP: no socket buffer is made and no routing table asked.
 *
 * Whatever is not plain (a first packet, a flow that must ask its claim, an unknown next hop, a packet to be
 * refused) is passed on untouched, and egress.bpf.c, attached behind it at tc, deals with it. So there is one
 * place that decides, and this file only moves what is decided. Frames in XDP have complete checksums.
 */
#pragma once

#include "checksum.h"
#include "claim.h"
#include "count.h"
#include "slots.h"

/* Changes one end of a frame whose checksums are complete. Returns 0, or nonzero to let tc do it. */
INLINE int translate_frame(void *data, void *end, const struct packet *packet, int source,
			   ip_address address, __u16 port)
{
	ip_header *ip = data + ETH_HLEN;
	__u8 *l4 = data + (packet->l4_offset & OFFSET_MAX);
	ip_address old_address = source ? packet->source : packet->destination;
	__u16 old_port = source ? packet->source_port : packet->destination_port;
	__u16 *check, *place, sum;

	if ((void *)(ip + 1) > end || (void *)(l4 + sizeof(struct icmp_header)) > end)
		return -1;
	if (packet->protocol == PROTOCOL_ICMP) {
		struct icmp_header *icmp = (void *)l4;

		icmp->checksum = checksum_replace(icmp->checksum, old_port, port);
		if (ICMP_SUM_COVERS_ADDRESSES)
			icmp->checksum = checksum_replace_address(icmp->checksum, old_address, address);
		icmp->id = port;
	} else {
		check = (void *)(l4 + (packet->protocol == IPPROTO_TCP ? 16 : 6));
		if ((void *)(check + 1) > end)
			return -1;
		place = (void *)(l4 + (source ? 0 : 2));
		*place = port;
		if (packet->protocol == IPPROTO_TCP || *check) { /* UDP without a checksum stays without */
			sum = checksum_replace(*check, old_port, port);
			sum = checksum_replace_address(sum, old_address, address);
			*check = packet->protocol == IPPROTO_UDP && !sum ? 0xffff : sum;
		}
	}
	set_address(ip, source ? &ip->saddr : &ip->daddr, address);
	decrease_ttl(ip);
	return 0;
}

/* A reply for a slice of this server: to the client when it belongs to an established flow of an on-ramp that
 * takes frames from XDP; else up. */
INLINE int fast_in(struct xdp_md *xdp, const struct packet *packet)
{
	void *data = (void *)(long)xdp->data, *end = (void *)(long)xdp->data_end;
	struct claim_key key = {.local = packet->destination,
				.remote = packet->source,
				.local_port = packet->destination_port,
				.remote_port = packet->protocol == PROTOCOL_ICMP ? 0 : packet->source_port,
				.protocol = packet->protocol};
	struct claim *claim = bpf_map_lookup_elem(&claims, &key);
	__u64 now = bpf_ktime_get_coarse_ns();
	struct onramp *onramp;
	struct ethhdr *eth = data;
	__u32 interface;

	if (!claim || !alive(claim, now) || packet->ttl <= 1)
		return XDP_PASS;
	if (packet->protocol == IPPROTO_TCP && ((packet->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST)) ||
						!(claim->state & SEEN_IN) || claim->refresh_in_ticks <= now / TICK_NS))
		return XDP_PASS;
	interface = claim->flow.onramp;
	onramp = bpf_map_lookup_elem(&onramps, &interface);
	if (!onramp || bpf_xdp_get_buff_len(xdp) > onramp->xdp_mtu + ETH_HLEN || (void *)(eth + 1) > end ||
	    translate_frame(data, end, packet, 0, claim->flow.client, claim->flow.client_port))
		return XDP_PASS;
	follow(packet, &claim->acknowledged, &claim->sent);
	copy(eth->h_dest, claim->client_mac, ETH_ALEN);
	copy(eth->h_source, claim->onramp_mac, ETH_ALEN);
	count(TRAFFIC_IN);
	count(TRAFFIC_FAST_IN);
	return bpf_redirect(interface, 0);
}

/* A client's packet of an established flow, out of the uplink; else on to egress_out. The redirect goes round
 * the guard at tc, so the guard's question is asked here. */
INLINE int fast_out(struct xdp_md *xdp, const struct packet *packet, const struct flow_key *key)
{
	void *data = (void *)(long)xdp->data, *end = (void *)(long)xdp->data_end;
	struct flow *flow = bpf_map_lookup_elem(&flows, key);
	__u64 now = bpf_ktime_get_coarse_ns();
	struct ethhdr *eth = data;
	struct settings *self;
	__u32 first = 0, owner;

	if (!flow || flow->refresh_ns <= now || flow->hop_ns <= now || packet->ttl <= 1 ||
	    (packet->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST)) || flow->hairpin || has_moved(data, end, flow) ||
	    bpf_xdp_get_buff_len(xdp) > flow->hop_mtu + ETH_HLEN || (void *)(eth + 1) > end ||
	    place_of(flow->local, flow->local_port, &owner) != PLACE_HERE)
		return XDP_PASS;
	self = bpf_map_lookup_elem(&settings, &first);
	if (!self || translate_frame(data, end, packet, 1, flow->local, flow->local_port))
		return XDP_PASS;
	follow(packet, &flow->acknowledged, &flow->sent);
	copy(eth->h_dest, flow->hop_destination, ETH_ALEN);
	copy(eth->h_source, flow->hop_source, ETH_ALEN);
	count(TRAFFIC_OUT);
	count(TRAFFIC_FAST_OUT);
	return bpf_redirect(self->uplink, 0);
}
