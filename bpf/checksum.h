/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Changing the Internet checksum along with what it covers (RFC 1624). */
#pragma once

#include "family.h"

/* One's complement sum of checksum `check` after a 16 bit word changed from `from` to `to` (RFC 1624). */
INLINE __u16 checksum_replace(__u16 check, __u16 from, __u16 to)
{
	__u32 sum = (__u16)~check + (__u16)~from + to;

	sum = (sum & 0xffff) + (sum >> 16);
	return ~(__u16)(sum + (sum >> 16));
}

/* A one's complement sum of 16 bit words, from one that carried. */
INLINE __u16 fold(__u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32 & 0xffff) + (sum >> 48);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)(sum + (sum >> 16));
}

/* checksum_replace after an address changed. */
INLINE __u16 checksum_replace_address(__u16 check, ip_address from, ip_address to)
{
	__u64 sum = (__u16)~check;

#if FAMILY == 4
	sum += (__u64)(__u32)~from + to;
#else
	for (int i = 0; i < 4; i++)
		sum += (__u64)(__u32)~from.words[i] + to.words[i];
#endif
	return ~fold(sum);
}

/* Gives the header's `field`, its source or destination, another address. */
INLINE void set_address(ip_header *ip, ip_address *field, ip_address to)
{
#if FAMILY == 4
	ip->check = checksum_replace_address(ip->check, *field, to);
#endif
	*field = to;
}

/* Hop limit down by one, checksum patched (RFC 1624: the field only grows by one in its high byte). */
INLINE void decrease_ttl(ip_header *ip)
{
#if FAMILY == 4
	__u32 sum = ip->check + be16(0x0100);

	ip->check = (__u16)(sum + (sum >= 0xffff));
#endif
	ip->ttl--;
}
