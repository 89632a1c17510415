/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Cutting a packet that may be fragmented (no DF) into fragments, in order, when the way on carries less (RFC 4787
 * REQ-13a). The pieces arrive once more where the packet did, and go the way of fragments: they are translated there,
 * so this file knows nothing of flows.
 *
 * What it does not cut gets the error that packets with DF get: packets with IP options, buffers of several
 * segments, and packets of more than CUT_BYTES.
 */
#pragma once

#include "count.h"
#include "fragment.h"
#include "icmp.h"

#if FAMILY == 6

/* Routers do not cut IPv6, nor does this one: the sender gets the error. */
INLINE int cut_up(struct __sk_buff *skb, const struct packet *packet, __u32 mtu, int from_wire)
{
	return -1;
}

#else

#define MTU_LEAST 68 /* RFC 791 */
#define SUM_BYTES 512
#define PROMISE_BYTES 40 /* Ethernet and IPv4 header, and some */

struct cut_up {
	struct __sk_buff *skb;
	struct cutting *cutting; /* on this CPU */
	__u32 bytes;             /* behind the IPv4 header */
	__u32 step;
	__u32 fragment; /* what the packet was of a larger one */
};

static long cut_piece(__u32 index, struct cut_up *cut_up)
{
	struct __sk_buff *skb = cut_up->skb;
	struct cutting *cutting = cut_up->cutting;
	__u32 at = index * cut_up->step, bytes = cut_up->step;
	struct iphdr *ip = (void *)&cutting->headers[ETH_HLEN];
	__u32 more = IP_MORE_FRAGMENTS;

	if (at >= cut_up->bytes)
		return 1;
	if (cut_up->bytes - at <= bytes) {
		bytes = cut_up->bytes - at;
		more = cut_up->fragment & IP_MORE_FRAGMENTS;
	}
	keep(at);
	keep(bytes);
	if (at >= CUT_BYTES || bytes > CUT_BYTES || !bytes)
		return 1;
	ip->tot_len = be16(sizeof(*ip) + bytes);
	ip->frag_off = be16(((cut_up->fragment & IP_OFFSET) + at / 8) | more);
	ip->check = 0;
	ip->check = ~fold(bpf_csum_diff(0, 0, (void *)ip, sizeof(*ip), 0));
	if (bpf_skb_change_tail(skb, ETH_HLEN + sizeof(*ip) + bytes, 0) ||
	    bpf_skb_store_bytes(skb, 0, cutting->headers, sizeof(cutting->headers), BPF_F_RECOMPUTE_CSUM) ||
	    bpf_skb_store_bytes(skb, sizeof(cutting->headers), cutting->content + at, bytes, BPF_F_RECOMPUTE_CSUM))
		return 1;
	bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
	return 0;
}

struct summing {
	struct cutting *cutting;
	__u32 bytes; /* a multiple of four */
	__u32 sum;
};

static long sum_part(__u32 index, struct summing *summing)
{
	__u32 at = index * SUM_BYTES, bytes = summing->bytes - at;

	if (at >= summing->bytes)
		return 1;
	if (bytes > SUM_BYTES)
		bytes = SUM_BYTES;
	keep(at);
	keep(bytes);
	if (at >= CUT_BYTES || bytes > SUM_BYTES)
		return 1;
	summing->sum += fold(bpf_csum_diff(0, 0, (void *)(summing->cutting->content + at), bytes, 0));
	return 0;
}

/* A buffer from a local stack may promise to be summed later (CHECKSUM_PARTIAL), which a piece could not keep. Fills
 * in the checksum, as the stack would, and takes the promise back: it ends when the bytes that it begins with are
 * cut off in front. The pieces are written anew anyway. */
INLINE int keep_promise(struct __sk_buff *skb, const struct packet *packet, struct cutting *cutting, __u32 bytes)
{
	struct summing summing = {.cutting = cutting, .bytes = (bytes + 3) & ~3u};
	__u32 field = packet->protocol == IPPROTO_TCP ? __builtin_offsetof(struct tcphdr, check) :
						       __builtin_offsetof(struct udphdr, check);
	__u16 sum;

	if (packet->protocol == IPPROTO_ICMP || is_later(packet) ||
	    !bpf_skb_change_tail(skb, packet->l4_offset + field + 1, 0)) /* no promise: its field may be cut */
		return 0;
	bpf_loop(CUT_BYTES / SUM_BYTES, sum_part, &summing, 0);
	sum = ~fold(summing.sum); /* the field holds the sum of the pseudo header */
	*(__u16 *)(cutting->content + field) = packet->protocol == IPPROTO_UDP && !sum ? 0xffff : sum;
	return bpf_skb_adjust_room(skb, -PROMISE_BYTES, BPF_ADJ_ROOM_MAC, 0);
}

/* Cuts the packet into fragments of at most `mtu` bytes, which arrive in its stead; from the wire, as sent by this
 * server itself: they need not meet anywhere. Returns 0 when done. */
ALONE int cut_up(struct __sk_buff *skb, const struct packet *packet, __u32 mtu, int from_wire)
{
	struct cut_up cut_up = {.skb = skb};
	__u32 bytes, only = 0;

	if (!packet || (packet->fragment & IP_DO_NOT_FRAGMENT) || skb->gso_size ||
	    packet->l4_offset != ETH_HLEN + sizeof(struct iphdr) || mtu < MTU_LEAST)
		return -1;
	cut_up.cutting = bpf_map_lookup_elem(&cuttings, &only);
	cut_up.bytes = bytes = packet->l4_bytes;
	cut_up.step = (mtu - sizeof(struct iphdr)) & ~7u;
	cut_up.fragment = packet->fragment;
	keep(bytes);
	if (!cut_up.cutting || bytes < 8 || bytes > CUT_BYTES ||
	    bpf_skb_load_bytes(skb, 0, cut_up.cutting->headers, sizeof(cut_up.cutting->headers)) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(struct iphdr), cut_up.cutting->content, bytes))
		return -1;
	if (from_wire)
		copy(cut_up.cutting->headers + ETH_ALEN, cut_up.cutting->headers, ETH_ALEN);
	*(__u32 *)(cut_up.cutting->content + bytes) = 0; /* the sum goes by words */
	if (keep_promise(skb, packet, cut_up.cutting, bytes))
		return -1;
	count(TRAFFIC_CUT);
	bpf_loop(CUT_BYTES / 8, cut_piece, &cut_up, 0);
	return 0;
}

#endif
