/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* ICMP errors of our own, and how many are enough: each receiver gets as many per second as the pool says, a second's
 * worth of them at once, and none when it says 0 (RFC 1812 section 4.3.2.8, RFC 5508 REQ-9 and REQ-10 f). What is
 * refused is refused and counted all the same; it is only not told any more. */
#pragma once

#include "count.h"

#define ERRORS_NS 1000000000ULL
#define ERRORS_WITHOUT_POOL 100 /* a second, to clients of a family that the pool has not: the default of pools */

/* May no error about this packet be sent to its sender, on this interface? */
ALONE int muted(const struct packet *packet, __u32 interface, __u32 pool_key)
{
	struct pool *pool = bpf_map_lookup_elem(&pools, &pool_key);
	__u64 now = bpf_ktime_get_coarse_ns(), next, *due;
	__u32 most = pool ? pool->errors_max : ERRORS_WITHOUT_POOL;
	struct client_key key = {.onramp = interface};

	if (!packet)
		return 0;
	key.address = packet->source;
	due = bpf_map_lookup_elem(&told, &key);
	next = due && *due > now ? *due : now;
	if (!most || next >= now + ERRORS_NS) {
		count(TRAFFIC_ICMP_MUTED);
		return 1;
	}
	next += ERRORS_NS / most;
	if (due)
		*due = next;
	else
		bpf_map_update_elem(&told, &key, &next, BPF_ANY); /* a full table forgets those it told long ago */
	return 0;
}
