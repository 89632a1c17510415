/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Changing one end of a packet in a socket buffer: address, port (or ICMP echo identifier), hop limit and
 * all checksums. The layer 4 checksum goes through the kernel's helper, because the buffer may come from a
 * container with the checksum still to be computed (CHECKSUM_PARTIAL), where the field holds something else. */
#pragma once

#include "checksum.h"
#include "parse.h"

#define HOP_LESS 0xfeff /* the sum of an IPv6 header after one hop less; that of an IPv4 header never changes */

enum end { END_SOURCE, END_DESTINATION };

struct rewrite {
	enum end end;
	ip_address address; /* new */
	__u16 port;    /* be, new */
	__u8 hops;     /* to take off the hop limit: 1, or 0 at the end of the way */
};

/* Never called. struct __sk_buff has pointers to these two; unless a function names them, clang leaves them out of
 * the BTF and declares them instead, in an order that changes with the length of the paths it was given. */
static __attribute__((noinline, used)) int name_types(struct bpf_flow_keys *keys, struct bpf_sock *sock)
{
	return 0;
}

#define HEADERS_MAX (ETH_HLEN + 2 * sizeof(struct vlan_tag) + IP_BYTES_MAX + sizeof(struct tcphdr))
#define QUOTE_MAX (HEADERS_MAX + sizeof(struct icmp_header) + IP_BYTES_MAX) /* with the headers that an ICMP error quotes */

/* Makes the first bytes of the frame, or all it has, readable in the linear part. Packet pointers taken before
 * are void afterwards. */
INLINE void pull(struct __sk_buff *skb, __u32 bytes)
{
	if (skb->data_end - skb->data < (long)bytes && skb->data_end - skb->data < (long)skb->len)
		bpf_skb_pull_data(skb, skb->len < bytes ? skb->len : bytes);
}

INLINE void pull_headers(struct __sk_buff *skb)
{
	pull(skb, HEADERS_MAX);
}

/* The part of `translate` that is about the IP header. */
INLINE int translate_header(struct __sk_buff *skb, const struct rewrite *rewrite)
{
	ip_header *ip = (void *)(long)skb->data + ETH_HLEN;

	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return -1;
	set_address(ip, rewrite->end == END_SOURCE ? &ip->saddr : &ip->daddr, rewrite->address);
	if (!rewrite->hops)
		return 0;
	decrease_ttl(ip);
	if (FAMILY == 6)
		bpf_csum_update(skb, HOP_LESS);
	return 0;
}

/* The checksum at `check` covers an address that changes. */
INLINE long replace_address(struct __sk_buff *skb, __u32 check, ip_address from, ip_address to, __u64 zero_stays)
{
#if FAMILY == 4
	return bpf_l4_csum_replace(skb, check, from, to, BPF_F_PSEUDO_HDR | zero_stays | sizeof(from));
#else
	long error;
	__s64 change = bpf_csum_diff((void *)&from, sizeof(from), (void *)&to, sizeof(to), 0);

	zero_stays |= BPF_F_PSEUDO_HDR;
	if (change < 0)
		return change;
	/* Kernels before 6.16 do not know this flag, and are wrong about buffers that a card has summed up. */
	error = bpf_l4_csum_replace(skb, check, 0, change, BPF_F_IPV6 | zero_stays);
	return error == -22 /* EINVAL */ ? bpf_l4_csum_replace(skb, check, 0, change, zero_stays) : error;
#endif
}

#define FOR_THIS_HOST 0 /* PACKET_HOST */

/* Frames for another MAC address (a switch that floods, a bridge), and those of a VLAN whose tag the kernel has taken
 * off, are not this interface's. In XDP a tag is still in the frame, and the card filters addresses. */
INLINE int is_others(const struct __sk_buff *skb)
{
	return skb->vlan_present || skb->pkt_type != FOR_THIS_HOST;
}

/* Applies `rewrite`. Returns 0, or nonzero when the packet must be dropped. */
INLINE int translate(struct __sk_buff *skb, const struct packet *packet, const struct rewrite *rewrite)
{
	ip_address old_address = rewrite->end == END_SOURCE ? packet->source : packet->destination;
	__u16 old_port = rewrite->end == END_SOURCE ? packet->source_port : packet->destination_port;
	__u32 l4 = packet->l4_offset, check, port;
	__u64 zero_stays = 0;
	void *end;
	__u16 *word;

	if (unlikely(packet->fragment & IP_OFFSET)) { /* its transport header is in another fragment */
		if (FAMILY == 6) /* where nothing makes up for the new address */
			bpf_csum_update(skb, (__u16)~checksum_replace_address(0xffff, old_address, rewrite->address));
		return translate_header(skb, rewrite);
	}
	if (packet->protocol == IPPROTO_TCP)
		check = l4 + __builtin_offsetof(struct tcphdr, check);
	else if (packet->protocol == IPPROTO_UDP)
		check = l4 + __builtin_offsetof(struct udphdr, check);
	else
		check = l4 + __builtin_offsetof(struct icmp_header, checksum);
	if (packet->protocol == PROTOCOL_ICMP)
		port = l4 + __builtin_offsetof(struct icmp_header, id);
	else
		port = rewrite->end == END_SOURCE ? l4 : l4 + 2;
	if (packet->protocol == IPPROTO_UDP)
		zero_stays = BPF_F_MARK_MANGLED_0;
	if (packet->protocol != PROTOCOL_ICMP || ICMP_SUM_COVERS_ADDRESSES)
		if (replace_address(skb, check, old_address, rewrite->address, zero_stays))
			return -1;
	if (bpf_l4_csum_replace(skb, check, old_port, rewrite->port, zero_stays | 2))
		return -1;
	if (translate_header(skb, rewrite))
		return -1;
	end = (void *)(long)skb->data_end;
	word = (void *)(long)skb->data + (port & OFFSET_MAX);
	if ((void *)(word + 1) > end)
		return -1;
	*word = rewrite->port;
	return 0;
}

/* The size of the IP packet as it will be on the wire: of a segment, when the buffer will be cut into many. */
INLINE __u32 packet_bytes(struct __sk_buff *skb, const struct packet *packet)
{
	struct tcphdr *tcp;

	if (!skb->gso_size)
		return skb->len - ETH_HLEN;
	tcp = (void *)(long)skb->data + (packet->l4_offset & OFFSET_MAX);
	if (packet->protocol != IPPROTO_TCP || (void *)(tcp + 1) > (void *)(long)skb->data_end)
		return skb->gso_size + packet->l4_offset - ETH_HLEN + sizeof(struct udphdr);
	return skb->gso_size + packet->l4_offset - ETH_HLEN + tcp->doff * 4;
}

/* Gives the frame new Ethernet addresses. Returns 0, or nonzero when it cannot. */
INLINE int set_mac(struct __sk_buff *skb, const __u8 *destination, const __u8 *source)
{
	struct ethhdr *eth = (void *)(long)skb->data;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return -1;
	copy(eth->h_dest, destination, ETH_ALEN);
	copy(eth->h_source, source, ETH_ALEN);
	return 0;
}
