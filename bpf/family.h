/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What differs between IPv4 and IPv6, for everything that does not: the other headers are written once, with the
 * names below, and a hook is compiled for one family. That is IPv4, unless it defines FAMILY before it includes them.
 * Addresses are in network byte order and only ever copied, compared and summed here. */
#pragma once

#include "bpf.h"

#ifndef FAMILY
#define FAMILY 4
#endif

#if FAMILY == 4

typedef __u32 ip_address;
typedef struct iphdr ip_header;
typedef __u16 ip_id; /* be: the identification of a datagram */

#define PROTOCOL_ICMP IPPROTO_ICMP
#define ICMP_SUM_COVERS_ADDRESSES 0
#define ADDRESS_BITS 32
#define SOCKET_FAMILY 2 /* AF_INET */
#define OF_FAMILY(rest) ipv4##rest /* a field that the kernel has for each */
#define HOOK(name) name            /* a program's name: the kernel and people know both families' by it */
#define ETH_P_FAMILY ETH_P_IP
#define IP_BYTES_MAX 60 /* the IP header with all that may follow before the transport header */
#define BYTES_ALWAYS_FIT 576 /* RFC 791: smaller packets need no check */
#define CONTENT_MAX (0xffff - sizeof(ip_header)) /* of a datagram, behind its IP header */
#define OFFSET_MAX 0x7f /* of a transport header that is not quoted; a mask that the verifier understands */

INLINE int same_address(ip_address a, ip_address b)
{
	return a == b;
}

INLINE int in_prefix(ip_address address, ip_address prefix, ip_address mask)
{
	return (address & mask) == prefix;
}

/* "Any" in the tables, and nobody's address on the wire. */
INLINE int is_unspecified(ip_address address)
{
	return !address;
}

/* Never forwarded, perhaps the host's: DHCP. */
INLINE int is_multicast(ip_address address)
{
	return (address & be32(0xf0000000)) == be32(0xe0000000) || address == ~0u;
}

INLINE int is_link_local(ip_address address)
{
	return 0; /* 169.254.0.0/16 is for clients like any other */
}

/* This host itself, whatever its addresses are; the unspecified one, too, as a destination. */
INLINE int is_loopback(ip_address address)
{
	return !address || (address & be32(0xff000000)) == be32(0x7f000000);
}

/* An address that stands for a number, where a table wants one. */
INLINE ip_address number_address(__u32 number)
{
	return number;
}

/* A number that stands for the address; not unique, for spreading. */
INLINE __u32 address_number(ip_address address)
{
	return be32(address);
}

/* Whose address is it? */
INLINE ip_address subscriber(ip_address client)
{
	return client;
}

/* The bits of an identification that say whose slice it is from, as a port (be). */
INLINE __u16 id_port(ip_id id)
{
	return id;
}

/* The identification of a number in a slice that begins at `first`, whose ports differ in `mask`. */
INLINE ip_id id_of(__u16 first, __u16 mask, __u32 number)
{
	return be16(first | (number & mask));
}

#else

typedef struct {
	__u32 words[4];
} ip_address;

typedef struct {
	__u32 version_class_label;
	__u16 payload_bytes; /* be */
	__u8 protocol;       /* of the next header */
	__u8 ttl;            /* the hop limit */
	ip_address saddr;
	ip_address daddr;
} ip_header;

typedef __u32 ip_id; /* be: the identification of a datagram */

/* IPv6 has maps of its own where a key or a value has an address in it. (A field of one of these names gets another
 * one, too; user space calls it as in IPv4.) */
#define blocks blocks6
#define addresses addresses6
#define pools pools6
#define resolvers resolvers6
#define onramps onramps6
#define flows flows6
#define claims claims6
#define clients clients6
#define exhausted exhausted6
#define told told6
#define exempt exempt6
#define sweeps sweeps6
#define usages usages6
#define usage_cells usage_cells6
#define scratch scratch6
#define datagrams datagrams6
#define held held6
#define numbers numbers6
#define chosen_of chosen_of6
#define desks desks6
#define recents recents6
#define senders senders6
#define asked_of asked_of6

#define PROTOCOL_ICMP 58
#define ICMP_SUM_COVERS_ADDRESSES 1
#define ADDRESS_BITS 128
#define SOCKET_FAMILY 10 /* AF_INET6 */
#define OF_FAMILY(rest) ipv6##rest
#define HOOK(name) name##6
#define ETH_P_FAMILY ETH_P_IPV6
#define EXTENSIONS_MAX 4
#define EXTENSIONS_BYTES_MAX 64
#define FRAGMENT_BYTES 8 /* a fragment header */
#define IP_BYTES_MAX (40 + EXTENSIONS_BYTES_MAX + FRAGMENT_BYTES)
#define BYTES_ALWAYS_FIT 1280 /* RFC 8200 section 5 */
#define CONTENT_MAX 0xffff
#define OFFSET_MAX 0xff

INLINE int same_address(ip_address a, ip_address b)
{
	return !((a.words[0] ^ b.words[0]) | (a.words[1] ^ b.words[1]) | (a.words[2] ^ b.words[2]) |
		 (a.words[3] ^ b.words[3]));
}

INLINE int in_prefix(ip_address address, ip_address prefix, ip_address mask)
{
	for (int i = 0; i < 4; i++)
		if ((address.words[i] & mask.words[i]) != prefix.words[i])
			return 0;
	return 1;
}

INLINE int is_unspecified(ip_address address)
{
	return !(address.words[0] | address.words[1] | address.words[2] | address.words[3]);
}

INLINE int is_multicast(ip_address address)
{
	return (address.words[0] & be32(0xff000000)) == be32(0xff000000);
}

/* Never forwarded, and the host's: neighbour discovery. */
INLINE int is_link_local(ip_address address)
{
	return (address.words[0] & be32(0xffc00000)) == be32(0xfe800000);
}

INLINE int is_loopback(ip_address address)
{
	return !(address.words[0] | address.words[1] | address.words[2] | (address.words[3] & ~be32(1)));
}

/* An IPv4 address, written as one of IPv6: a matter of the other family. */
INLINE int is_mapped(ip_address address)
{
	return !(address.words[0] | address.words[1]) && address.words[2] == be32(0xffff);
}

INLINE ip_address number_address(__u32 number)
{
	return (ip_address){{number}};
}

INLINE __u32 address_number(ip_address address)
{
	return be32(address.words[0] ^ address.words[1] ^ address.words[2] ^ address.words[3]);
}

/* Whoever has one address of a /64 can have all of them. */
INLINE ip_address subscriber(ip_address client)
{
	client.words[2] = client.words[3] = 0;
	return client;
}

INLINE __u16 id_port(ip_id id)
{
	return (__u16)id; /* its first two bytes */
}

INLINE ip_id id_of(__u16 first, __u16 mask, __u32 number)
{
	return be32((__u32)first << 16 | (number & ((__u32)mask << 16 | 0xffff)));
}

#endif

#define UNSPECIFIED ((ip_address){})
