/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From frame to the few numbers every hook needs. Reads headers only, trusts no length field: what the
 * headers claim must fit in the frame. Hooks decide what a packet means; this file only says what it is. */
#pragma once

#include "abi.h"
#include "bpf.h"

#if FAMILY == 4
#define ICMP_ECHO_REPLY 0
#define ICMP_UNREACHABLE 3
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER_PROBLEM 12
#define ICMP_TOO_BIG ICMP_UNREACHABLE /* with a code of its own */
#else
#define ICMP_UNREACHABLE 1
#define ICMP_TOO_BIG 2
#define ICMP_TIME_EXCEEDED 3
#define ICMP_PARAMETER_PROBLEM 4
#define ICMP_ECHO 128
#define ICMP_ECHO_REPLY 129
#define ICMP_DISCOVERY_FIRST 133 /* router and neighbour discovery (RFC 4861), not to be forwarded */
#define ICMP_DISCOVERY_LAST 137
#define PROTOCOL_HOP_BY_HOP 0
#define PROTOCOL_ROUTING 43
#define PROTOCOL_FRAGMENT 44
#define PROTOCOL_DESTINATION 60
#endif

#define IP_DO_NOT_FRAGMENT 0x4000
#define IP_MORE_FRAGMENTS 0x2000
#define IP_OFFSET 0x1fff

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

struct icmp_header {
	__u8 type;
	__u8 code;
	__u16 checksum;
	__u16 id;       /* echo; unused word for errors */
	__u16 sequence; /* echo; next-hop MTU for "fragmentation needed" */
};

enum parsed {
	PARSED_OK = 0,    /* TCP, UDP or ICMP echo with all of its header */
	PARSED_OTHER,     /* not of this family: nothing of ours */
	PARSED_FRAGMENT,  /* see packet.fragment; ports only in the first one, with all of its header (fragment.h) */
	PARSED_ERROR,     /* an ICMP error: quote.h reads what it is about */
	PARSED_DROP,      /* of this family, but see packet.reason; addresses are valid unless MALFORMED */
};

struct packet {
	ip_address source;
	ip_address destination;
	__u16 source_port;      /* be; ICMP echo: the identifier in both */
	__u16 destination_port; /* be */
	__u32 sequence;         /* TCP */
	__u32 sequence_end;     /* TCP: behind the payload, SYN and FIN */
	__u32 acknowledgement;  /* TCP, 0 without ACK */
	__u16 l4_offset;        /* bytes from the start of the frame */
	__u16 l4_bytes;         /* from there to the end of the packet; a frame may be longer */
	__u16 fragment;         /* the flags and offset as in an IPv4 header, host order */
	ip_id id;               /* be; of a fragment */
	ip_id new_id;           /* be; what it leaves with */
#if FAMILY == 6
	__u16 id_offset;        /* bytes from the start of the frame */
#endif
	__u8 protocol;
	__u8 ttl;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 reason; /* enum reason, with PARSED_DROP */
};

/* Neighbour discovery, for one address: a matter of this link, whatever the address. ARP's place in IPv6. */
INLINE int is_discovery(const struct packet *packet)
{
#if FAMILY == 4
	return 0;
#else
	return packet->protocol == PROTOCOL_ICMP && packet->icmp_type >= ICMP_DISCOVERY_FIRST &&
	       packet->icmp_type <= ICMP_DISCOVERY_LAST;
#endif
}

INLINE int refuse(struct packet *packet, enum reason reason)
{
	packet->reason = reason;
	return PARSED_DROP;
}

INLINE int parse_l4(void *l4, void *end, __u32 l4_bytes, struct packet *packet)
{
	if (packet->protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;

		if ((void *)(tcp + 1) > end || l4_bytes < sizeof(*tcp) || tcp->doff < 5 || tcp->doff * 4u > l4_bytes)
			return refuse(packet, REASON_MALFORMED);
		packet->source_port = tcp->source;
		packet->destination_port = tcp->dest;
		packet->tcp_flags = ((__u8 *)tcp)[13];
		packet->sequence = be32(tcp->seq);
		packet->sequence_end = packet->sequence + l4_bytes - tcp->doff * 4 + tcp->syn + tcp->fin;
		packet->acknowledgement = tcp->ack ? be32(tcp->ack_seq) : 0;
		return PARSED_OK;
	}
	if (packet->protocol == IPPROTO_UDP) {
		struct udphdr *udp = l4;

		if ((void *)(udp + 1) > end || l4_bytes < sizeof(*udp) || be16(udp->len) < sizeof(*udp) ||
		    (be16(udp->len) > l4_bytes && !(packet->fragment & IP_MORE_FRAGMENTS)))
			return refuse(packet, REASON_MALFORMED);
		packet->source_port = udp->source;
		packet->destination_port = udp->dest;
		return PARSED_OK;
	}
	if (packet->protocol == PROTOCOL_ICMP) {
		struct icmp_header *icmp = l4;

		if ((void *)(icmp + 1) > end || l4_bytes < sizeof(*icmp))
			return refuse(packet, REASON_MALFORMED);
		packet->icmp_type = icmp->type;
		if (icmp->type == ICMP_UNREACHABLE || icmp->type == ICMP_TOO_BIG || icmp->type == ICMP_TIME_EXCEEDED ||
		    icmp->type == ICMP_PARAMETER_PROBLEM)
			return PARSED_ERROR;
		packet->source_port = packet->destination_port = icmp->id;
		if (icmp->type == ICMP_ECHO || icmp->type == ICMP_ECHO_REPLY)
			return PARSED_OK;
		/* Redirects and source quench from the internet are nobody's business (RFC 5508 REQ-10). */
	}
	return refuse(packet, REASON_PROTOCOL);
}

/* A fragment that cannot be true is refused: one that would not end where the next can begin, that ends behind the
 * largest packet, a first one without all of its transport header, or a later one that overlaps it (RFC 1858). */
INLINE int parse_fragment(void *l4, void *end, struct packet *packet)
{
	__u32 offset = (packet->fragment & IP_OFFSET) * 8, bytes = packet->l4_bytes;
	int parsed;

	packet->reason = REASON_FRAGMENT;
	if (!bytes || ((packet->fragment & IP_MORE_FRAGMENTS) && bytes % 8) ||
	    offset + bytes > CONTENT_MAX ||
	    (offset && offset < sizeof(struct tcphdr) && packet->protocol == IPPROTO_TCP))
		return PARSED_DROP;
	if (offset)
		return packet->protocol == IPPROTO_TCP || packet->protocol == IPPROTO_UDP ||
				       packet->protocol == PROTOCOL_ICMP ?
			       PARSED_FRAGMENT :
			       refuse(packet, REASON_PROTOCOL);
	parsed = parse_l4(l4, end, bytes, packet);
	if (parsed == PARSED_OK)
		return PARSED_FRAGMENT;
	if (packet->reason == REASON_MALFORMED)
		packet->reason = REASON_FRAGMENT;
	return PARSED_DROP;
}

struct vlan_tag { /* what follows an EtherType that announces it */
	__u16 control;
	__u16 protocol;
};

INLINE int is_tag(__u16 protocol)
{
	return protocol == be16(ETH_P_8021Q) || protocol == be16(ETH_P_8021AD);
}

#if FAMILY == 4

/* The header at `l2_bytes`, of a packet of at most `bytes`. */
INLINE int parse_ip(void *data, void *end, __u32 l2_bytes, __u32 bytes, struct packet *packet)
{
	ip_header *ip = data + l2_bytes;
	__u32 header_bytes, total_bytes;

	if ((void *)(ip + 1) > end)
		return refuse(packet, REASON_MALFORMED);
	header_bytes = ip->ihl * 4;
	total_bytes = be16(ip->tot_len);
	packet->source = ip->saddr;
	packet->destination = ip->daddr;
	packet->protocol = ip->protocol;
	packet->ttl = ip->ttl;
	packet->l4_offset = l2_bytes + header_bytes;
	/* The unspecified address is nobody's, and stands for "any" in the tables. */
	if (ip->version != 4 || header_bytes < sizeof(*ip) || total_bytes < header_bytes || total_bytes > bytes ||
	    is_unspecified(packet->source) || is_unspecified(packet->destination))
		return refuse(packet, REASON_MALFORMED);
	packet->l4_bytes = total_bytes - header_bytes;
	packet->fragment = be16(ip->frag_off);
	packet->id = ip->id;
	if (unlikely(packet->fragment & (IP_MORE_FRAGMENTS | IP_OFFSET)))
		return parse_fragment((void *)ip + header_bytes, end, packet);
	return parse_l4((void *)ip + header_bytes, end, total_bytes - header_bytes, packet);
}

#else

struct extension { /* how an extension header begins (RFC 8200 section 4) */
	__u8 protocol; /* of what follows */
	__u8 words;    /* of 8 bytes, less one */
	__u8 kind;     /* of routing */
	__u8 left;     /* addresses still to be visited: the destination is not the last one */
};

/* Does a header of this kind stand before the transport header, which says what the packet is? Authentication and
 * encryption do not: what follows them is not ours to change. */
INLINE int is_extension(__u8 protocol)
{
	return protocol == PROTOCOL_HOP_BY_HOP || protocol == PROTOCOL_ROUTING || protocol == PROTOCOL_DESTINATION;
}

/* Goes on to the header behind the one at `*at` bytes from `start`. Returns 0, or nonzero when it cannot. */
INLINE int next_header(void *start, void *end, __u32 *at, __u8 *protocol)
{
	struct extension *extension = start + *at;

	if ((void *)(extension + 1) > end || (*protocol == PROTOCOL_ROUTING && extension->left))
		return -1;
	*at += (extension->words + 1) * 8;
	*protocol = extension->protocol;
	return *at > sizeof(ip_header) + EXTENSIONS_BYTES_MAX;
}

struct fragment_header { /* RFC 8200 section 4.5 */
	__u8 protocol; /* of what the fragments make */
	__u8 zero;
	__u16 place; /* be; offset in 8 bytes << 3, and whether more follow */
	ip_id id;
};

/* Its place as IPv4 has it. None: the header is on a whole packet, which it leaves as it is (RFC 6946). */
INLINE __u16 fragment_of(const struct fragment_header *header)
{
	__u16 place = be16(header->place);

	return place >> 3 | (place & 1 ? IP_MORE_FRAGMENTS : 0);
}

INLINE int parse_ip(void *data, void *end, __u32 l2_bytes, __u32 bytes, struct packet *packet)
{
	ip_header *ip = data + l2_bytes;
	__u32 total_bytes, at = sizeof(*ip);

	if ((void *)(ip + 1) > end)
		return refuse(packet, REASON_MALFORMED);
	total_bytes = sizeof(*ip) + be16(ip->payload_bytes);
	packet->source = ip->saddr;
	packet->destination = ip->daddr;
	packet->protocol = ip->protocol;
	packet->ttl = ip->ttl;
	packet->l4_offset = l2_bytes + at;
	if ((ip->version_class_label & 0xf0) != 0x60 || total_bytes > bytes || is_unspecified(packet->source) ||
	    is_unspecified(packet->destination) || is_multicast(packet->source))
		return refuse(packet, REASON_MALFORMED);
	for (int i = 0; i < EXTENSIONS_MAX && is_extension(packet->protocol); i++)
		if (next_header(ip, end, &at, &packet->protocol))
			return refuse(packet, REASON_PROTOCOL);
	packet->l4_offset = l2_bytes + at;
	if (total_bytes < at)
		return refuse(packet, REASON_MALFORMED);
	packet->l4_bytes = total_bytes - at;
	if (unlikely(packet->protocol == PROTOCOL_FRAGMENT)) {
		struct fragment_header *header = (void *)ip + at;

		if ((void *)(header + 1) > end || packet->l4_bytes < sizeof(*header))
			return refuse(packet, REASON_MALFORMED);
		packet->protocol = header->protocol;
		packet->fragment = fragment_of(header);
		packet->id = header->id;
		packet->id_offset = packet->l4_offset + __builtin_offsetof(struct fragment_header, id);
		packet->l4_offset += sizeof(*header);
		packet->l4_bytes -= sizeof(*header);
		if (packet->fragment)
			return parse_fragment(header + 1, end, packet);
		return parse_l4(header + 1, end, packet->l4_bytes, packet);
	}
	return parse_l4((void *)ip + at, end, total_bytes - at, packet);
}

#endif

/* Parses an Ethernet frame of `frame_bytes`, of which [data, end) can be read, behind at most `tags` VLAN tags. */
INLINE int parse_behind(void *data, void *end, __u32 frame_bytes, const int tags, struct packet *packet)
{
	struct ethhdr *eth = data;
	__u32 l2_bytes = sizeof(*eth);
	__u16 protocol;

	zero_fill(packet, sizeof(*packet));
	if ((void *)(eth + 1) > end)
		return PARSED_OTHER;
	protocol = eth->h_proto;
	for (int i = 0; i < tags && is_tag(protocol); i++) {
		struct vlan_tag *tag = data + l2_bytes;

		if ((void *)(tag + 1) > end)
			return PARSED_OTHER;
		protocol = tag->protocol;
		l2_bytes += sizeof(*tag);
	}
	if (protocol != be16(ETH_P_FAMILY))
		return PARSED_OTHER;
	return parse_ip(data, end, l2_bytes, frame_bytes - l2_bytes, packet);
}

INLINE int parse(void *data, void *end, __u32 frame_bytes, struct packet *packet)
{
	return parse_behind(data, end, frame_bytes, 0, packet);
}
