// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Generator and sink of the packet benchmarks.
 *
 *   requests   run by BPF_PROG_TEST_RUN with live frames: the next flow's packet, redirected into the path
 *   replies    the same from the far end, to where the sink saw the flow come from
 *   sink_out   XDP at the far end: drops and counts requests
 *   sink_in    XDP at the client's end: drops and counts replies
 *
 * Live frames come back with what was last in them, so every header field is written for every packet.
 */
#include "flood.h"

INLINE int make(struct xdp_md *xdp, struct control *control, const struct ends *ends, __u32 number)
{
	return write_frame(xdp, control, ends, number) ? XDP_ABORTED : bpf_redirect(control->interface, 0);
}

SEC("xdp")
int requests(struct xdp_md *xdp)
{
	struct control *now = bpf_map_lookup_elem(&control, &first);
	struct ends ends;
	__u32 number;

	if (!now)
		return XDP_ABORTED;
	number = next_number(now);
	ends = request_of(number);
	return make(xdp, now, &ends, number);
}

SEC("xdp")
int replies(struct xdp_md *xdp)
{
	struct control *now = bpf_map_lookup_elem(&control, &first);
	struct mapping *source;
	struct ends ends, request;
	__u32 number;

	if (!now)
		return XDP_ABORTED;
	number = next_number(now);
	source = bpf_map_lookup_elem(&mapping, &number);
	if (!source)
		return XDP_ABORTED;
	request = request_of(number);
	ends.source = request.destination;
	ends.source_port = request.destination_port;
	ends.destination = source->address;
	ends.destination_port = source->port;
	return make(xdp, now, &ends, number);
}

/* Looked at while recording: are the checksums what they should be, whatever path the packet took? */
INLINE void check_sums(struct tally *count, const struct frame *frame, const struct ends *ends)
{
	__u16 ip = ~folded(ip_sum(ends, frame->ip.ttl)), udp = ~folded(udp_sum(ends, frame->number));

	if (frame->ip.check != ip || frame->udp.check != (udp ? udp : 0xffff))
		count->bad_checksum++;
}

INLINE void note(const struct frame *frame)
{
	__u32 number = frame->number;
	struct mapping *source = bpf_map_lookup_elem(&mapping, &number);

	if (!source)
		return;
	source->address = frame->ip.saddr;
	source->port = frame->udp.source;
	source->seen = 1;
}

INLINE int sink(struct xdp_md *xdp, int out)
{
	struct control *now = bpf_map_lookup_elem(&control, &first);
	struct tally *count = bpf_map_lookup_elem(&tally, &first);
	struct frame *frame = (void *)(long)xdp->data;
	struct ends want, have;

	if ((void *)(frame + 1) > (void *)(long)xdp->data_end || frame->eth.h_proto != be16(ETH_P_IP) || !now || !count)
		return XDP_DROP;
	want = request_of(frame->number);
	have = (struct ends){frame->ip.saddr, frame->ip.daddr, frame->udp.source, frame->udp.dest};
	if (out ? have.source == (now->local ? now->local : want.source) && have.destination == want.destination :
		  have.destination == want.source && have.destination_port == want.source_port)
		count->right++;
	else
		count->wrong++;
	if (now->record) {
		check_sums(count, frame, &have);
		if (out)
			note(frame);
	}
	return XDP_DROP;
}

SEC("xdp")
int sink_out(struct xdp_md *xdp)
{
	return sink(xdp, 1);
}

SEC("xdp")
int sink_in(struct xdp_md *xdp)
{
	return sink(xdp, 0);
}

LICENSE;
