/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From the XDP program of IPv4 to that of IPv6. A device has one XDP program, so the one for IPv4 is attached, and
 * hands frames of IPv6 on by a tail call. User space writes `handed` before it attaches; it exchanges an entry in one
 * step, so that a frame meets the old program or the new one. The pin keeps the entries: without it, and without a
 * process that has the map open, the kernel would empty it. */
#pragma once

#include "abi.h"
#include "bpf.h"

#if FAMILY == 4

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, HANDED_MAX);
	__type(key, __u32);
	__type(value, __u32);
} handed SEC(".maps");

#endif

/* For a frame that is not of this family: the verdict of the other one's program, if it is one of IPv6. */
INLINE int hand_on(struct xdp_md *xdp, enum handed program)
{
#if FAMILY == 4
	struct ethhdr *eth = (void *)(long)xdp->data;

	if ((void *)(eth + 1) <= (void *)(long)xdp->data_end && eth->h_proto == be16(ETH_P_IPV6))
		bpf_tail_call(xdp, &handed, program);
#endif
	return XDP_PASS;
}
