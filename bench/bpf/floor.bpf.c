// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The least that any path of its kind can cost: the packet is sent on to another interface, with the Ethernet
 * addresses it needs there, and nothing else is done to it. Also the programs that stand for "nothing at all". */
#include "bpf.h"

struct floor { /* array, one entry */
	__u32 interface;
	__u8 to[6];
	__u8 from[6];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct floor);
} floors SEC(".maps");

static const __u32 first = 0;

INLINE struct floor *readdress(void *data, void *end)
{
	struct floor *floor = bpf_map_lookup_elem(&floors, &first);
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > end || eth->h_proto != be16(ETH_P_IP) || !floor)
		return 0;
	copy(eth->h_dest, floor->to, ETH_ALEN);
	copy(eth->h_source, floor->from, ETH_ALEN);
	return floor;
}

SEC("tc")
int floor_tc(struct __sk_buff *skb)
{
	struct floor *floor = readdress((void *)(long)skb->data, (void *)(long)skb->data_end);

	return floor ? bpf_redirect(floor->interface, 0) : TC_ACT_UNSPEC;
}

SEC("xdp.frags")
int floor_xdp(struct xdp_md *xdp)
{
	struct floor *floor = readdress((void *)(long)xdp->data, (void *)(long)xdp->data_end);

	return floor ? bpf_redirect(floor->interface, 0) : XDP_PASS;
}

SEC("xdp.frags")
int floor_tx(struct xdp_md *xdp)
{
	return readdress((void *)(long)xdp->data, (void *)(long)xdp->data_end) ? XDP_TX : XDP_PASS;
}

SEC("xdp.frags")
int nothing(struct xdp_md *xdp)
{
	return XDP_DROP;
}

LICENSE;
