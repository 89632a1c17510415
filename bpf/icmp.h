/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Answering a packet with an ICMP error (RFC 792, RFC 1812 section 4.3.2, RFC 4443 section 2.4), out of the interface it came from. The
 * packet itself becomes the answer: cut after the transport header's first bytes, room made in front, new headers
 * written. */
#pragma once

#include "count.h"
#include "rewrite.h"
#include "scratch.h"

#if FAMILY == 4
#define UNREACHABLE_HOST 1        /* RFC 6888 REQ-11 B: no port could be mapped; only TCP gives up at once */
#define UNREACHABLE_NET 0
#define UNREACHABLE_TOO_BIG 4
#define UNREACHABLE_PROHIBITED 13 /* RFC 5508 REQ-8: no resources for a query; a UDP socket fails with it too */
#define TRANSPORT_AT_LEAST 20     /* where it can begin in a quote */
#else
#define UNREACHABLE_HOST 3
#define UNREACHABLE_NET 0
#define UNREACHABLE_TOO_BIG 0 /* the only code of its type */
#define UNREACHABLE_PROHIBITED 1
#define TRANSPORT_AT_LEAST 40
#endif

#define PRECEDENCE_INTERNETWORK 0xc0 /* RFC 1812 section 4.3.2.5: errors get through where others wait */

#define ERROR(type, code) ((type) << 8 | (code))

struct error_headers {
	ip_header ip;
	struct icmp_header icmp;
};

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
	if (at > sizeof(*quote) - sizeof(held)) /* never; the verifier cannot know */
		return 0;
	held = *(__u16 *)&quote->bytes[at];
	for (__u32 i = TRANSPORT_AT_LEAST; i < sizeof(*quote); i += 2)
		if (i >= header_bytes)
			*(__u16 *)&quote->bytes[i] = 0;
	return fold((__u64)fold(bpf_csum_diff(0, 0, (void *)quote, sizeof(*quote), 0)) + (__u16)~held);
}

/* The header in front of an ICMP message of `bytes`. Returns what its pseudo-header adds to the message's sum. */
INLINE __u32 address_error(ip_header *ip, __u32 bytes, ip_address from, ip_address to)
{
#if FAMILY == 4
	ip->version = 4;
	ip->ihl = 5;
	ip->tos = PRECEDENCE_INTERNETWORK;
	ip->tot_len = be16(sizeof(*ip) + bytes);
#else
	ip->version_class_label = 0x60;
	ip->payload_bytes = be16(bytes);
#endif
	ip->ttl = 64;
	ip->protocol = PROTOCOL_ICMP;
	ip->saddr = from;
	ip->daddr = to;
#if FAMILY == 4
	ip->check = ~fold(bpf_csum_diff(0, 0, (void *)ip, sizeof(*ip), 0));
	return 0;
#else
	return be16(bytes) + be16(PROTOCOL_ICMP) +
	       fold(bpf_csum_diff(0, 0, (void *)&ip->saddr, 2 * sizeof(ip->saddr), 0));
#endif
}

/* Turns the packet into an ICMP error to its sender, Ethernet addresses included. Returns 0 when it can be sent. */
ALONE int icmp_error(struct __sk_buff *skb, const struct packet *packet, const ip_address *own_address,
		     __u32 type_code)
{
	struct error_headers headers = {};
	struct scratch *scratch = scratch_here();
	struct cut_bytes *quote;
	int partial, transport_bytes;
	__u32 header_bytes, quote_bytes, covered;
	struct ethhdr *eth;
	__u8 mac[ETH_ALEN];

	if (!packet || !own_address || !scratch || is_unspecified(*own_address))
		return -1;
	quote = &scratch->quoted;
	zero_fill(quote, sizeof(*quote));
	header_bytes = (packet->l4_offset - ETH_HLEN) & (IP_BYTES_MAX < 64 ? 0x3c : 0x7c);
	transport_bytes = cut(skb, packet, &partial);
	if (transport_bytes < 0)
		return -1;
	quote_bytes = header_bytes + (transport_bytes == 20 ? 20 : 8);
	if (quote_bytes > sizeof(*quote) || quote_bytes < TRANSPORT_AT_LEAST + 8 || bpf_skb_load_bytes(skb, ETH_HLEN, quote, quote_bytes))
		return -1;
	if (bpf_skb_adjust_room(skb, sizeof(headers), BPF_ADJ_ROOM_MAC, 0))
		return -1;

	covered = address_error(&headers.ip, sizeof(headers.icmp) + quote_bytes, *own_address, packet->source);
	headers.icmp.type = type_code >> 8;
	headers.icmp.code = type_code;
	headers.icmp.sequence = be16(type_code >> 16); /* the MTU, with "too big" (RFC 1191, RFC 4443) */
	headers.icmp.checksum = ~fold((__u64)be16(type_code) + headers.icmp.sequence + covered +
				      quote_sum(quote, header_bytes, packet, partial));
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
