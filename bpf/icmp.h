/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Answering a packet with an ICMP error (RFC 792, RFC 1812 section 4.3.2), out of the interface it came from. The
 * packet itself becomes the answer: cut after the transport header's first bytes, room made in front, new headers
 * written. */
#pragma once

#include "count.h"
#include "rewrite.h"

#define UNREACHABLE_HOST 1        /* RFC 6888 REQ-11 B: no port could be mapped; only TCP gives up at once */
#define UNREACHABLE_NET 0
#define UNREACHABLE_TOO_BIG 4
#define UNREACHABLE_PROHIBITED 13 /* RFC 5508 REQ-8: no resources for a query; a UDP socket fails with it too */

#define PRECEDENCE_INTERNETWORK 0xc0 /* RFC 1812 section 4.3.2.5: errors get through where others wait */

#define ERROR(type, code) ((type) << 8 | (code))

struct cut_bytes { /* what the error quotes: IP header with options, at most 20 bytes of transport header */
	__u8 bytes[80];
};

struct error_headers {
	struct iphdr ip;
	struct icmp_header icmp;
} __attribute__((packed));

INLINE __u16 fold(__u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32 & 0xffff) + (sum >> 48);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)(sum + (sum >> 16));
}

/* Cuts the frame after the transport header's first 8 bytes (RFC 792). A buffer whose checksum is still to
 * be computed (CHECKSUM_PARTIAL) cannot be cut before the end of its checksum field: that is how we find
 * out, and then the quote is longer. Returns the quote's transport bytes (negative: failed). */
INLINE int cut(struct __sk_buff *skb, const struct packet *packet, int *partial)
{
	__u32 l4 = packet->l4_offset;
	__u8 eighth = 0;

	*partial = 0;
	if (packet->protocol == PROTOCOL_ICMP)
		return bpf_skb_change_tail(skb, l4 + 8, 0) ? -1 : 8;
	if (bpf_skb_load_bytes(skb, l4 + 7, &eighth, 1))
		return -1;
	if (bpf_skb_change_tail(skb, l4 + 7, 0) == 0)
		return bpf_skb_change_tail(skb, l4 + 8, 0) || bpf_skb_store_bytes(skb, l4 + 7, &eighth, 1, 0) ? -1 : 8;
	*partial = 1;
	if (packet->protocol == IPPROTO_UDP)
		return bpf_skb_change_tail(skb, l4 + 8, 0) ? -1 : 8;
	return bpf_skb_change_tail(skb, l4 + 20, 0) ? -1 : 20;
}

/* The one's complement sum of the quote as it will be on the wire. With CHECKSUM_PARTIAL the stack still
 * fills in the transport checksum: afterwards all bytes from the transport header on sum up to the
 * complement of what the field holds now, whatever they are. */
INLINE __u16 quote_sum(struct cut_bytes *quote, __u32 header_bytes, const struct packet *packet, int partial)
{
	__u32 at = header_bytes + (packet->protocol == IPPROTO_UDP ? 6 : 16);
	__u16 held;

	if (!partial)
		return fold(bpf_csum_diff(0, 0, (void *)quote, sizeof(*quote), 0));
	if (at > sizeof(*quote) - sizeof(held)) /* 60 + 16 at most; the verifier cannot know */
		return 0;
	held = *(__u16 *)&quote->bytes[at];
	for (__u32 i = 20; i < sizeof(*quote); i += 2)
		if (i >= header_bytes)
			*(__u16 *)&quote->bytes[i] = 0;
	return fold((__u64)fold(bpf_csum_diff(0, 0, (void *)quote, sizeof(*quote), 0)) + (__u16)~held);
}

/* Turns the packet into an ICMP error to its sender, Ethernet addresses included. Returns 0 when it can be sent. */
ALONE int icmp_error(struct __sk_buff *skb, const struct packet *packet, const ip_address *own_address,
		     __u32 type_code)
{
	struct error_headers headers = {};
	struct cut_bytes quote = {};
	int partial, transport_bytes;
	__u32 header_bytes, quote_bytes;
	struct ethhdr *eth;
	__u8 mac[ETH_ALEN];

	if (!packet || !own_address || is_unspecified(*own_address))
		return -1;
	header_bytes = (packet->l4_offset - ETH_HLEN) & 0x3c;
	transport_bytes = cut(skb, packet, &partial);
	if (transport_bytes < 0)
		return -1;
	quote_bytes = header_bytes + (transport_bytes == 20 ? 20 : 8);
	if (quote_bytes > sizeof(quote) || quote_bytes < 28 || bpf_skb_load_bytes(skb, ETH_HLEN, &quote, quote_bytes))
		return -1;
	if (bpf_skb_adjust_room(skb, sizeof(headers), BPF_ADJ_ROOM_MAC, 0))
		return -1;

	headers.icmp.type = type_code >> 8;
	headers.icmp.code = type_code;
	headers.icmp.sequence = be16(type_code >> 16); /* the MTU, with "too big" (RFC 1191) */
	headers.icmp.checksum = ~fold((__u64)be16(type_code) + headers.icmp.sequence +
				      quote_sum(&quote, header_bytes, packet, partial));
	headers.ip.version = 4;
	headers.ip.ihl = 5;
	headers.ip.tos = PRECEDENCE_INTERNETWORK;
	headers.ip.tot_len = be16(sizeof(headers) + quote_bytes);
	headers.ip.ttl = 64;
	headers.ip.protocol = PROTOCOL_ICMP;
	headers.ip.saddr = *own_address;
	headers.ip.daddr = packet->source;
	headers.ip.check = ~fold(bpf_csum_diff(0, 0, (void *)&headers.ip, sizeof(headers.ip), 0));
	if (bpf_skb_store_bytes(skb, ETH_HLEN, &headers, sizeof(headers), 0))
		return -1;
	eth = (void *)(long)skb->data;
	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return -1;
	copy(mac, eth->h_dest, ETH_ALEN);
	copy(eth->h_dest, eth->h_source, ETH_ALEN);
	copy(eth->h_source, mac, ETH_ALEN);
	count(TRAFFIC_ICMP_SENT);
	return 0;
}
