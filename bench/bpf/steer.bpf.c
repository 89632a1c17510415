// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Traffic for the director: packets to any port of any slice of its table, in random order.
 *
 *   arrivals   run with live frames: redirected into the uplink of the server under test
 *   wrapped    run in place: makes the packet, then goes on in the program under test (a tail call), so that the
 *              cost of the program alone can be taken, with a different key in every run
 *   returned   XDP where steered packets come back: drops and counts
 *
 * Slice number n belongs to port (n % 32) of address (n / 32), and to neighbour (n % NEIGHBOURS). Where tunnels are under
 * test, that one's tunnel ends at 198.19.0.n; `unwrapped` and `untunnelled` are for these.
 */
#include "flood.h"

#define SLICES_PER_ADDRESS 32
#define SLICE_SHIFT 11
#define NEIGHBOURS 31

#define TUNNEL_BYTES ((int)(sizeof(struct iphdr) + sizeof(struct udphdr)))

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} under_test SEC(".maps");

INLINE struct control *make(struct xdp_md *xdp)
{
	struct control *now = bpf_map_lookup_elem(&control, &first);
	struct ends ends;
	__u32 number, random;

	if (!now)
		return 0;
	number = next_number(now);
	random = mix(now->counter ^ 0x5bd1e995);
	ends.source = be32(0xcb007100 + (random & 0xff));
	ends.source_port = be16(REMOTE_PORT);
	ends.destination = be32(0x0a800000 + number / SLICES_PER_ADDRESS);
	ends.destination_port = be16(number % SLICES_PER_ADDRESS << SLICE_SHIFT | random >> (32 - SLICE_SHIFT));
	return write_frame(xdp, now, &ends, number) ? 0 : now;
}

SEC("xdp.frags")
int arrivals(struct xdp_md *xdp)
{
	struct control *now = make(xdp);

	return now ? bpf_redirect(now->interface, 0) : XDP_ABORTED;
}

SEC("xdp.frags")
int wrapped(struct xdp_md *xdp)
{
	if (make(xdp))
		bpf_tail_call(xdp, &under_test, 0);
	return XDP_ABORTED;
}

/* As wrapped, after a program that puts a header in front: what it made room for in the last run is taken away. */
SEC("xdp.frags")
int unwrapped(struct xdp_md *xdp)
{
	if (xdp->data_end - xdp->data > FRAME_BYTES && bpf_xdp_adjust_head(xdp, TUNNEL_BYTES))
		return XDP_ABORTED;
	if (make(xdp))
		bpf_tail_call(xdp, &under_test, 0);
	return XDP_ABORTED;
}

struct tunnelled {
	struct ethhdr eth;
	struct iphdr outer;
	struct udphdr udp;
	struct iphdr ip;
	struct udphdr inner_udp;
	__u32 number;
} __attribute__((packed));

SEC("xdp.frags")
int untunnelled(struct xdp_md *xdp)
{
	struct tally *count = bpf_map_lookup_elem(&tally, &first);
	struct tunnelled *frame = (void *)(long)xdp->data;

	if ((void *)(frame + 1) > (void *)(long)xdp->data_end || frame->eth.h_proto != be16(ETH_P_IP) || !count)
		return XDP_DROP;
	if (frame->ip.ttl == TTL - 1 && frame->udp.dest == be16(6080) &&
	    frame->outer.daddr == be32(0xc6130000 + frame->number % NEIGHBOURS))
		count->right++;
	else
		count->wrong++;
	return XDP_DROP;
}

SEC("xdp.frags")
int returned(struct xdp_md *xdp)
{
	struct tally *count = bpf_map_lookup_elem(&tally, &first);
	struct frame *frame = (void *)(long)xdp->data;

	if ((void *)(frame + 1) > (void *)(long)xdp->data_end || frame->eth.h_proto != be16(ETH_P_IP) || !count)
		return XDP_DROP;
	if (frame->ip.ttl == TTL - 1 && frame->eth.h_dest[4] == 3 && frame->eth.h_dest[5] == frame->number % NEIGHBOURS)
		count->right++;
	else
		count->wrong++;
	return XDP_DROP;
}

LICENSE;
