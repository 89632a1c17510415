/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ICMP errors: which conversation one is about, and translating it (RFC 5508 sections 4 and 5).
 *
 * An error quotes the packet that it is about, its IP header and at least eight bytes more. Whoever sent that
 * packet is who the error is for, so the *quoted* source names the owner, wherever the error comes from. Both
 * the error's own header and the quote are rewritten, the quote's checksums included, as if the client had
 * talked to the internet itself. Errors neither refresh nor end a claim (RFC 4787 REQ-12, RFC 5382 REQ-10).
 */
#pragma once

#include "checksum.h"
#include "parse.h"

struct quote {
	ip_address source;
	ip_address destination;
	__u16 source_port;      /* be; ICMP echo: the identifier in both */
	__u16 destination_port; /* be */
	__u16 ip_offset;        /* bytes from the start of the frame */
	__u16 l4_offset;
	__u8 protocol;
};

#if FAMILY == 4

INLINE int header_checksum_right(ip_header *ip, void *end)
{
	__u16 *word = (void *)ip;
	__u32 words = ip->ihl * 2u, sum = 0;

	for (__u32 i = 0; i < 30; i++, word++) {
		if (i >= words)
			break;
		if ((void *)(word + 1) > end)
			return 0;
		sum += *word;
	}
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)(sum + (sum >> 16)) == 0xffff;
}

/* Reads the quoted IP header, which is whole. */
INLINE int parse_quoted_ip(ip_header *ip, void *end, struct quote *quote)
{
	if (ip->version != 4 || ip->ihl < 5 || (ip->frag_off & be16(IP_OFFSET)) || !header_checksum_right(ip, end))
		return -1;
	quote->protocol = ip->protocol;
	quote->l4_offset = quote->ip_offset + ip->ihl * 4;
	return 0;
}

#else

INLINE int parse_quoted_ip(ip_header *ip, void *end, struct quote *quote)
{
	__u32 at = sizeof(*ip);

	if ((ip->version_class_label & 0xf0) != 0x60)
		return -1;
	quote->protocol = ip->protocol;
	for (int i = 0; i < EXTENSIONS_MAX && is_extension(quote->protocol); i++)
		if (next_header(ip, end, &at, &quote->protocol))
			return -1;
	if (quote->protocol == PROTOCOL_FRAGMENT) {
		struct fragment_header *header = (void *)ip + at;

		if ((void *)(header + 1) > end || (fragment_of(header) & IP_OFFSET))
			return -1;
		quote->protocol = header->protocol;
		at += sizeof(*header);
	}
	quote->l4_offset = quote->ip_offset + at;
	return 0;
}

#endif

/* Reads the quoted packet. Returns 0 when it is whole enough to name a conversation. */
INLINE int parse_quote(void *data, void *end, const struct packet *packet, struct quote *quote)
{
	ip_header *ip;
	__u8 *l4;

	quote->ip_offset = packet->l4_offset + sizeof(struct icmp_header);
	ip = data + (quote->ip_offset & OFFSET_MAX);
	if (packet->l4_bytes < sizeof(struct icmp_header) + sizeof(*ip) + 8)
		return -1; /* what follows is not part of the packet, whatever the frame has there */
	if ((void *)(ip + 1) > end || parse_quoted_ip(ip, end, quote))
		return -1;
	quote->source = ip->saddr;
	quote->destination = ip->daddr;
	l4 = data + (quote->l4_offset & 0xff);
	if ((void *)(l4 + 8) > end || quote->l4_offset + 8 > packet->l4_offset + packet->l4_bytes)
		return -1;
	if (quote->protocol == PROTOCOL_ICMP) {
		if (l4[0] != ICMP_ECHO && l4[0] != ICMP_ECHO_REPLY)
			return -1;
		quote->source_port = quote->destination_port = *(__u16 *)(l4 + 4);
		return 0;
	}
	if (quote->protocol != IPPROTO_TCP && quote->protocol != IPPROTO_UDP)
		return -1;
	quote->source_port = *(__u16 *)l4;
	quote->destination_port = *(__u16 *)(l4 + 2);
	return 0;
}

/* A 16 bit word of the error message changes: the field, and the error's checksum that covers it. */
INLINE void change_word(__u16 *field, __u16 to, __u16 *icmp_checksum)
{
	*icmp_checksum = checksum_replace(*icmp_checksum, *field, to);
	*field = to;
}

INLINE void change_address(ip_address *field, ip_address to, __u16 *icmp_checksum)
{
	*icmp_checksum = checksum_replace_address(*icmp_checksum, *field, to);
	*field = to;
}

/* Rewrites one end of the quoted packet to `address` and `port` and, outside, the other end to `address` too:
 * an error comes to whom its quote came from. `hops`: as in struct rewrite. Returns 0 when done. */
INLINE int translate_error(void *data, void *end, const struct packet *packet, const struct quote *quote, int source,
			   ip_address address, __u16 port, int hops)
{
	ip_address old_address = source ? quote->source : quote->destination;
	__u16 old_port = source ? quote->source_port : quote->destination_port;
	ip_header *ip = data + ETH_HLEN, *inner = data + (quote->ip_offset & OFFSET_MAX);
	struct icmp_header *icmp = data + (packet->l4_offset & OFFSET_MAX);
	__u8 *l4 = data + (quote->l4_offset & 0xff);
	__u16 *check, *place, sum;
	__u32 at; /* of the quoted checksum; it may not be quoted */

	keep(inner);
	keep(icmp);
	keep(l4);
	if ((void *)(ip + 1) > end || (void *)(icmp + 1) > end || (void *)(inner + 1) > end || (void *)(l4 + 8) > end)
		return -1;
#if FAMILY == 4
	sum = checksum_replace_address(inner->check, old_address, address);
	change_word(&inner->check, sum, &icmp->checksum);
#endif
	change_address(source ? &inner->saddr : &inner->daddr, address, &icmp->checksum);
	place = (void *)(l4 + (quote->protocol == PROTOCOL_ICMP ? 4 : source ? 0 : 2));
	change_word(place, port, &icmp->checksum);
	at = quote->protocol == PROTOCOL_ICMP ? 2 : quote->protocol == IPPROTO_UDP ? 6 : 16;
	check = (void *)(l4 + at);
	if ((void *)(check + 1) <= end && quote->l4_offset + at + 2 <= packet->l4_offset + packet->l4_bytes &&
	    (quote->protocol != IPPROTO_UDP || *check)) {
		sum = checksum_replace(*check, old_port, port);
		if (quote->protocol != PROTOCOL_ICMP || ICMP_SUM_COVERS_ADDRESSES)
			sum = checksum_replace_address(sum, old_address, address);
		change_word(check, quote->protocol == IPPROTO_UDP && !sum ? 0xffff : sum, &icmp->checksum);
	}
	if (ICMP_SUM_COVERS_ADDRESSES)
		icmp->checksum = checksum_replace_address(icmp->checksum, source ? ip->daddr : ip->saddr, address);
	set_address(ip, source ? &ip->daddr : &ip->saddr, address);
	if (hops)
		decrease_ttl(ip);
	return 0;
}
