/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which resolvers on loopback a socket has asked, and which of its pool's answer for them. Written when it asks (dns.h),
 * read when its program wants to know who answers (dns.bpf.c). Other sockets have none of this. */
#pragma once

#include "maps.h"

#define DNS_PORT be16(53)

struct asked { /* by the place of the pool's resolver in its list */
	struct {
		ip_address resolver;
		ip_address loopback; /* what the program knows it by */
	} of[RESOLVERS_MAX];
	__u32 pool;
	__u32 connected; /* to the resolver at that place, counted from 1 */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct asked);
} asked_of SEC(".maps");
