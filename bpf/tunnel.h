/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Tunnels between servers that no switch joins: what goes in front of a packet, and the way that it takes.
 *
 * The format is GUE, variant 1: UDP to port 6080, and behind its header at once the packet, whose own first bits say
 * whether it is IPv4 or IPv6 (docs/decisions/0015). The UDP checksum is 0: whatever is inside has its own. encapsulate.h
 * puts packets in, decapsulate.h takes them out, the director decides. The outer header is IPv4, whatever is inside.
 */
#pragma once

#include "checksum.h"
#include "maps.h"
#include "parse.h"

#define TUNNEL_PORT 6080
#define TUNNEL_TTL 64
#define TUNNEL_BYTES ((int)sizeof(struct tunnel_header))
#define TUNNEL_PORT_BITS 14   /* source ports 49152-65535 tell flows apart, for routers that spread them */
#define TUNNEL_HOP_NS 1000000000ULL    /* a changed route or neighbour is noticed after this */
#define TUNNEL_PATH_NS 600000000000ULL /* after this a larger packet is tried again (RFC 1191 section 6.3) */
#define TUNNEL_PATH_LEAST 576
#define LOOPBACK_INDEX 1 /* in every network namespace */

struct tunnel_header {
	struct iphdr ip;
	struct udphdr udp;
};

INLINE int same_mac(const __u8 *first, const __u8 *second)
{
	const __u16 *a = (const void *)first, *b = (const void *)second;

	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]));
}

/* What comes out of a tunnel gets this as its Ethernet source, so that all behind know: it is not sent on again. */
#define OPENED_FIRST be16(0x0247) /* 02:47:55:45:00:00, of a kind that no card has: "GUE" */
#define OPENED_SECOND be16(0x5545)

INLINE int is_opened(const struct ethhdr *eth)
{
	const __u16 *words = (const void *)eth->h_source;

	return words[0] == OPENED_FIRST && words[1] == OPENED_SECOND && !words[2];
}

INLINE void mark_opened(struct ethhdr *eth)
{
	__u16 *words = (void *)eth->h_source;

	words[0] = OPENED_FIRST;
	words[1] = OPENED_SECOND;
	words[2] = 0;
}

/* This server, when it has tunnels; else 0. */
INLINE struct server *tunnel_end(void)
{
	__u32 first = 0, own;
	struct settings *self = bpf_map_lookup_elem(&settings, &first);
	struct server *me;

	if (!self)
		return 0;
	own = self->self;
	me = bpf_map_lookup_elem(&servers, &own);
	return me && me->address ? me : 0;
}

/* DSCP goes along; congestion marks do not, because they would get lost on the way out (RFC 6040 section 4.1). */
INLINE __u8 class_of(const ip_header *ip)
{
#if FAMILY == 4
	return ip->tos & 0xfc;
#else
	return be32(ip->version_class_label) >> 20 & 0xfc;
#endif
}

INLINE void write_tunnel(struct tunnel_header *outer, __u32 from, __u32 to, __u32 bytes, __u8 class, __u32 hash)
{
	__u64 sum;

	outer->ip.version = 4;
	outer->ip.ihl = 5;
	outer->ip.tos = class;
	outer->ip.tot_len = be16(bytes + TUNNEL_BYTES);
	outer->ip.id = 0; /* never in fragments */
	outer->ip.frag_off = be16(IP_DO_NOT_FRAGMENT);
	outer->ip.ttl = TUNNEL_TTL;
	outer->ip.protocol = IPPROTO_UDP;
	outer->ip.saddr = from;
	outer->ip.daddr = to;
	sum = (__u64)from + to + be16(0x4500 | class) + outer->ip.tot_len + be16(IP_DO_NOT_FRAGMENT) +
	      be16(TUNNEL_TTL << 8 | IPPROTO_UDP);
	outer->ip.check = ~fold(sum);
	outer->udp.source = be16((0xffff & ~0u << TUNNEL_PORT_BITS) | hash >> (32 - TUNNEL_PORT_BITS));
	outer->udp.dest = be16(TUNNEL_PORT);
	outer->udp.len = be16(bytes + sizeof(struct udphdr));
	outer->udp.check = 0;
}

/* A packet that is to leave for a tunnel's end at a peer? */
INLINE int enters_tunnel(const struct packet *packet)
{
#if FAMILY == 4
	return packet->protocol == IPPROTO_UDP && packet->destination_port == be16(TUNNEL_PORT) && tunnel_end() &&
	       bpf_map_lookup_elem(&peers, &packet->destination);
#else
	return 0;
#endif
}
