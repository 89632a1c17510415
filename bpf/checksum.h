/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Changing the Internet checksum along with what it covers (RFC 1624). */
#pragma once

#include "bpf.h"

/* One's complement sum of checksum `check` after a 16 bit word changed from `from` to `to` (RFC 1624). */
INLINE __u16 checksum_replace(__u16 check, __u16 from, __u16 to)
{
	__u32 sum = (__u16)~check + (__u16)~from + to;

	sum = (sum & 0xffff) + (sum >> 16);
	return ~(__u16)(sum + (sum >> 16));
}

INLINE void checksum_replace_address(struct iphdr *ip, __u32 from, __u32 to)
{
	ip->check = checksum_replace(ip->check, from, to);
	ip->check = checksum_replace(ip->check, from >> 16, to >> 16);
}

/* Hop limit down by one, checksum patched (RFC 1624: the field only grows by one in its high byte). */
INLINE void decrease_ttl(struct iphdr *ip)
{
	__u32 sum = ip->check + be16(0x0100);

	ip->check = (__u16)(sum + (sum >= 0xffff));
	ip->ttl--;
}
