/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From the programs of IPv4 to those of IPv6. The ones for IPv4 are attached, and hand on what is not theirs by a tail call:
 * a device has one XDP program, and at tc every packet would pay for a second one that has nothing to do with it. User space
 * writes the maps before it attaches; it exchanges an entry in one step, so that a packet meets the old program or the
 * new one. The pins keep the entries: without them, and without a process that has the map open, the kernel would empty it. */
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

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, HANDED_TC_MAX);
	__type(key, __u32);
	__type(value, __u32);
} handed_tc SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} handed_sent SEC(".maps");

#endif

/* Is the frame one of IPv6, as far as it says so without a tag? */
INLINE int is_handed(void *data, void *end)
{
	struct ethhdr *eth = data;

	return FAMILY == 4 && (void *)(eth + 1) <= end && eth->h_proto == be16(ETH_P_IPV6);
}

/* For a frame that is not of this family: the verdict of the other one's program, if it is one of IPv6. */
INLINE int hand_on(struct xdp_md *xdp, enum handed program)
{
#if FAMILY == 4
	if (is_handed((void *)(long)xdp->data, (void *)(long)xdp->data_end))
		bpf_tail_call(xdp, &handed, program);
#endif
	return XDP_PASS;
}

/* Likewise at tc, of whatever is not IPv4. */
INLINE int hand_over(struct __sk_buff *skb, enum handed_tc program)
{
#if FAMILY == 4
	bpf_tail_call(skb, &handed_tc, program);
#endif
	return TC_ACT_UNSPEC;
}
