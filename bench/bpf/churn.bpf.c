// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The two ends of the soak.
 *
 *   lane0, lane1   run by BPF_PROG_TEST_RUN with live frames, each on a core: the clients' next packet
 *   far            XDP at the internet's end: checks each packet, and answers it as its number says
 *   near           XDP at the clients' end: checks what comes back
 *
 * Live frames come back with what was last in them, so every header field is written for every packet.
 */
#include "churn.h"

static const __u32 first = 0;

/* Writes a packet of the conversation with everything but Ethernet addresses; `out`: from its client. */
INLINE void write_packet(struct frame *frame, const struct talk *talk, __u32 number, __u32 step, int out)
{
	__u32 behind = behind_first(talk, step);
	__u8 flags = out ? flags_out(talk, step) : flags_in(talk, step);

	frame->eth.h_proto = be16(ETH_P_IP);
	frame->ip.version = 4;
	frame->ip.ihl = 5;
	frame->ip.tos = 0;
	frame->ip.tot_len = be16(FRAME_BYTES - ETH_HLEN);
	frame->ip.id = 0;
	frame->ip.frag_off = 0;
	frame->ip.ttl = TTL;
	frame->ip.protocol = talk->protocol;
	zero_fill(frame->segment, sizeof(frame->segment));
	if (talk->protocol == IPPROTO_UDP) {
		frame->udp.len = be16(SEGMENT_BYTES);
		frame->udp_number = number;
		frame->udp_step = step;
		return;
	}
	frame->tcp.doff = 5;
	((__u8 *)&frame->tcp)[13] = flags;
	frame->tcp.window = be16(0xffff);
	frame->number = number;
	frame->step = step;
	if (out) {
		frame->tcp.seq = be32(talk->first_out + behind);
		frame->tcp.ack_seq = step ? be32(talk->first_in + behind) : 0;
		return;
	}
	frame->tcp.seq = be32(talk->first_in + behind);
	frame->tcp.ack_seq = be32(talk->first_out + behind + PAYLOAD_BYTES + !step +
				  (step == 3 && talk->kind == KIND_FIN));
}

INLINE void write_ends(struct frame *frame, __u32 source, __u16 source_port, __u32 destination, __u16 destination_port)
{
	frame->ip.saddr = source;
	frame->ip.daddr = destination;
	frame->udp.source = source_port; /* TCP has them in the same place */
	frame->udp.dest = destination_port;
}

INLINE int generate(struct xdp_md *xdp, __u32 lane)
{
	struct control *now = bpf_map_lookup_elem(&control, &lane);
	struct tally *count = bpf_map_lookup_elem(&tally, &first);
	struct frame *frame = (void *)(long)xdp->data;
	__u32 made, number, turn, step;
	struct talk talk;

	if (!now || !count || (void *)(frame + 1) > (void *)(long)xdp->data_end)
		return XDP_ABORTED;
	made = now->next++;
	turn = made / WINDOW % STEPS;
	number = (made / WINDOW / STEPS * WINDOW + made * 37 % WINDOW) * LANES + lane;
	talk = talk_of(number, now->hot_every);
	step = step_at(&talk, turn);
	if (!is_sent(&talk, step))
		return XDP_DROP;
	if ((mix(talk.hash + 16 + step) & 31) == 7) {
		count->lost++;
		return XDP_DROP;
	}
	write_packet(frame, &talk, number, step, 1);
	write_ends(frame, talk.client, talk.client_port, talk.remote, talk.remote_port);
	copy(frame->eth.h_dest, now->to, ETH_ALEN);
	copy(frame->eth.h_source, now->from, ETH_ALEN);
	fill_sums(frame);
	count->sent++;
	return bpf_redirect(now->interface, 0);
}

SEC("xdp")
int lane0(struct xdp_md *xdp)
{
	return generate(xdp, 0);
}

SEC("xdp")
int lane1(struct xdp_md *xdp)
{
	return generate(xdp, 1);
}

/* A packet of a conversation, as far as the frame says. Returns its number's talk in `talk`. */
INLINE int read_frame(struct xdp_md *xdp, struct frame **frame, __u32 *number, __u32 *step)
{
	*frame = (void *)(long)xdp->data;
	if ((void *)(*frame + 1) > (void *)(long)xdp->data_end || (*frame)->eth.h_proto != be16(ETH_P_IP))
		return -1;
	if ((*frame)->ip.protocol == IPPROTO_TCP) {
		*number = (*frame)->number;
		*step = (*frame)->step;
	} else if ((*frame)->ip.protocol == IPPROTO_UDP) {
		*number = (*frame)->udp_number;
		*step = (*frame)->udp_step;
	} else {
		return -1;
	}
	return 0;
}

/* Who had this five-tuple before, and from where did this conversation come before? */
INLINE void check_port(struct tally *count, const struct frame *frame, __u32 number, __u64 now)
{
	struct tuple key = {frame->ip.daddr, frame->udp.dest, frame->udp.source, frame->ip.protocol};
	__u32 place = number & 0xffff;
	struct holder *before = bpf_map_lookup_elem(&holders, &key), *known = bpf_map_lookup_elem(&ports, &place);
	struct holder this = {.number = number, .at_ns = now};

	if (before && before->number != number && now - before->at_ns < TOLD_APART_NS)
		count->shared++;
	bpf_map_update_elem(&holders, &key, &this, 0);
	if (!known)
		return;
	if (known->number == number && known->at_ns && known->at_ns != frame->udp.source)
		count->moved++;
	known->number = number;
	known->at_ns = frame->udp.source;
}

/* Instead of an answer, now and then: something for a port of nobody, or that nobody here asked for. */
INLINE int stray(struct tally *count, struct frame *frame, const struct control *now, __u32 hash)
{
	__u16 port = mix(hash + 64);

	write_ends(frame, STRAY_SOURCE, be16(443), now->local, be16(port));
	if (frame->ip.protocol == IPPROTO_UDP)
		frame->udp_number = STRAY;
	else
		frame->number = STRAY;
	count->strays++;
	if (port >= now->port_first && port <= now->port_last)
		count->strays_here++;
	return 0;
}

SEC("xdp")
int far(struct xdp_md *xdp)
{
	struct control *now = bpf_map_lookup_elem(&control, &first);
	struct tally *count = bpf_map_lookup_elem(&tally, &first);
	struct talk talk;
	struct frame *frame;
	__u32 number, step, dice;
	__u16 port;

	if (!now || !count || read_frame(xdp, &frame, &number, &step))
		return XDP_DROP; /* what kernels say to each other */
	count->arrived++;
	talk = talk_of(number, now->hot_every);
	port = be16(frame->udp.source);
	if (frame->ip.daddr != talk.remote || frame->udp.dest != talk.remote_port || frame->ip.protocol != talk.protocol ||
	    step >= STEPS)
		count->wrong++;
	if (frame->ip.saddr != now->local || port < now->port_first || port > now->port_last)
		count->outside++;
	if (ip_sum(frame) != 0xffff || segment_sum(frame) != 0xffff)
		count->bad_checksum++;
	check_port(count, frame, number, bpf_ktime_get_ns());
	dice = mix(talk.hash + 32 + step) & 63;
	if (dice < 2 || (talk.protocol == IPPROTO_TCP && !flags_in(&talk, step)))
		return XDP_DROP;
	port = frame->udp.source;
	write_packet(frame, &talk, number, step, 0);
	write_ends(frame, talk.remote, talk.remote_port, now->local, port);
	if (dice == 2)
		stray(count, frame, now, talk.hash + step);
	if (dice == 3 && step == 1 && talk.protocol == IPPROTO_TCP) { /* a blind RST: it is passed on, and believed by nobody */
		((__u8 *)&frame->tcp)[13] = TCP_RST;
		frame->tcp.seq = be32(talk.first_in + 0x40000000);
	}
	copy(frame->eth.h_dest, frame->eth.h_source, ETH_ALEN);
	fill_sums(frame);
	count->replied++;
	return bpf_redirect(xdp->ingress_ifindex, 0); /* unlike XDP_TX it reaches a peer that has no program in XDP */
}

SEC("xdp")
int near(struct xdp_md *xdp)
{
	struct control *now = bpf_map_lookup_elem(&control, &first);
	struct tally *count = bpf_map_lookup_elem(&tally, &first);
	struct frame *frame = (void *)(long)xdp->data;
	__u32 number, step;
	struct talk talk;

	if (!now || !count)
		return XDP_DROP;
	if (read_frame(xdp, &frame, &number, &step)) {
		if ((void *)(frame + 1) <= (void *)(long)xdp->data_end && frame->ip.protocol == IPPROTO_ICMP)
			count->refused++;
		return XDP_DROP;
	}
	count->returned++;
	talk = talk_of(number, now->hot_every);
	if (frame->ip.daddr != talk.client || frame->udp.dest != talk.client_port || frame->ip.saddr != talk.remote ||
	    frame->udp.source != talk.remote_port || frame->ip.protocol != talk.protocol)
		count->wrong++;
	if (ip_sum(frame) != 0xffff || segment_sum(frame) != 0xffff)
		count->bad_checksum++;
	return XDP_DROP;
}

LICENSE;
