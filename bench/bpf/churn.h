/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The conversations of the soak: which one is number i, and what each of its packets looks like. All of it follows
 * from the number, which every packet carries as payload, so both ends can tell without any memory of their own
 * what a packet has to be. User space shares the maps (bench/churn.py); layouts are checked there by size. */
#pragma once

#include "bpf.h"

#define LANES 2           /* generators at work at once, each on a core of its own */
#define STEPS 5           /* packets of a conversation that its client sends, at most */
#define WINDOW 256        /* conversations under way at once, of a lane */
#define FRAME_BYTES 60
#define SEGMENT_BYTES 26  /* transport header and payload */
#define PAYLOAD_BYTES 6   /* of TCP */
#define TTL 64
#define STRAY ~0u         /* the number of packets that belong to no conversation */
#define STRAY_SOURCE be32(0xcb0071c8) /* 203.0.113.200: nobody ever sends there */
#define TUPLES_BITS 21
#define TOLD_APART_NS 1500000000ULL /* a port that changed hands was silent for longer */

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_PSH 0x08
#define TCP_ACK 0x10

enum kind { KIND_FIN, KIND_RESET_OUT, KIND_RESET_IN, KIND_LEFT, KIND_UDP };

struct control { /* array, one entry for each lane */
	__u32 next;      /* packets made so far, skipped ones included */
	__u32 interface; /* where the generator sends */
	__u32 hot_every; /* every so many conversations go to one and the same destination */
	__u32 local;     /* be; the shared address */
	__u16 port_first, port_last;
	__u8 to[6], from[6];
};

/* array, one entry per CPU: what happened, counted */
struct tally {
	__u64 sent;        /* by clients, into the on-ramp */
	__u64 lost;        /* by clients, lost before */
	__u64 arrived;     /* at the far end */
	__u64 replied;     /* by the far end, into the uplink */
	__u64 strays;      /* of these, for nobody here */
	__u64 strays_here; /* of these, for a slice of the server */
	__u64 returned;    /* at the client's end */
	__u64 refused;     /* ICMP errors there */
	__u64 wrong;       /* not what its number says */
	__u64 bad_checksum;
	__u64 outside;     /* from a port that is not the server's */
	__u64 moved;       /* a conversation that came from another port than before */
	__u64 shared;      /* two conversations that had one five-tuple at once */
};

struct tuple { /* as the remote end sees it */
	__u32 remote; /* be */
	__u16 remote_port, local_port; /* be */
	__u32 protocol;
};

struct holder {
	__u32 number;
	__u32 zero;
	__u64 at_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LANES);
	__type(key, __u32);
	__type(value, struct control);
} control SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tally);
} tally SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << TUPLES_BITS);
	__type(key, struct tuple);
	__type(value, struct holder);
} holders SEC(".maps");

struct { /* the port of each conversation under way, by its number's last bits */
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << 16);
	__type(key, __u32);
	__type(value, struct holder);
} ports SEC(".maps");

struct frame {
	struct ethhdr eth;
	struct iphdr ip;
	union {
		struct {
			struct tcphdr tcp;
			__u32 number;
			__u16 step;
		} __attribute__((packed));
		struct {
			struct udphdr udp;
			__u32 udp_number;
			__u16 udp_step;
			__u8 rest[12];
		} __attribute__((packed));
		__u8 segment[SEGMENT_BYTES];
	};
} __attribute__((packed));

struct talk { /* one conversation; all be but kind, order and numbers */
	__u32 client, remote;
	__u16 client_port, remote_port;
	__u32 hash;
	__u32 first_out, first_in; /* where the sequence numbers of both sides begin */
	enum kind kind;
	__u8 protocol;
};

INLINE __u32 mix(__u32 value)
{
	value ^= value >> 16;
	value *= 0x7feb352d;
	value ^= value >> 15;
	value *= 0x846ca68b;
	return value ^ value >> 16;
}

INLINE struct talk talk_of(__u32 number, __u32 hot_every)
{
	static const enum kind kinds[8] = {KIND_FIN, KIND_FIN, KIND_FIN, KIND_RESET_OUT,
					   KIND_RESET_IN, KIND_LEFT, KIND_UDP, KIND_UDP};
	__u32 hash = mix(number);
	struct talk talk = {
		.client = be32(0x0a010000 + (number & 0xfff)),
		.client_port = be16(1024 + (number >> 12) % 64000),
		.remote = be32(0xc6120000 + (number % hot_every ? 1 + (hash >> 20) : 0)),
		.remote_port = be16(443),
		.hash = hash,
		.first_out = mix(hash + 1),
		.first_in = mix(hash + 2),
		.kind = kinds[hash & 7],
	};

	talk.protocol = talk.kind == KIND_UDP ? IPPROTO_UDP : IPPROTO_TCP;
	return talk;
}

/* Which of its packets a conversation's client sends at the given turn: now and then one overtakes another. */
INLINE __u32 step_at(const struct talk *talk, __u32 turn)
{
	__u32 swap = talk->hash >> 8 & 31; /* the first of the two that change places; from STEPS - 1 on: none does */

	if (swap >= STEPS - 1 || (!swap && talk->hash >> 13 & 3)) /* that data overtake the SYN is rarer */
		return turn;
	return turn == swap ? swap + 1 : turn == swap + 1 ? swap : turn;
}

/* Does the client send this packet at all? After an RST it is silent. */
INLINE int is_sent(const struct talk *talk, __u32 step)
{
	if (talk->kind == KIND_RESET_OUT)
		return step <= 3;
	if (talk->kind == KIND_RESET_IN || talk->kind == KIND_LEFT)
		return step <= 2;
	return 1;
}

INLINE __u8 flags_out(const struct talk *talk, __u32 step)
{
	if (!step)
		return TCP_SYN;
	if (step == 3 && talk->kind == KIND_FIN)
		return TCP_FIN | TCP_ACK;
	if (step == 3 && talk->kind == KIND_RESET_OUT)
		return TCP_RST | TCP_ACK;
	return step == 4 ? TCP_ACK : TCP_ACK | TCP_PSH;
}

/* 0: no answer */
INLINE __u8 flags_in(const struct talk *talk, __u32 step)
{
	if (!step)
		return TCP_SYN | TCP_ACK;
	if (step == 2 && talk->kind == KIND_RESET_IN)
		return TCP_RST | TCP_ACK;
	if (step == 3)
		return talk->kind == KIND_FIN ? TCP_FIN | TCP_ACK : 0;
	return step == 4 ? 0 : TCP_ACK | TCP_PSH;
}

/* Where the packet of a step begins, counted from its side's first number. */
INLINE __u32 behind_first(const struct talk *talk, __u32 step)
{
	return step * PAYLOAD_BYTES + (step > 0) + (step > 3 && talk->kind == KIND_FIN);
}

INLINE __u16 folded(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)sum;
}

/* The one's complement sums of header and segment as they are; right ones give 0xffff. */
INLINE __u16 ip_sum(const struct frame *frame)
{
	const __u16 *word = (const void *)&frame->ip;
	__u64 sum = 0;

	for (int i = 0; i < 10; i++)
		sum += word[i];
	return folded(sum);
}

INLINE __u16 segment_sum(const struct frame *frame)
{
	const __u16 *word = (const void *)frame->segment;
	__u64 sum = (__u64)frame->ip.saddr + frame->ip.daddr + be16(frame->ip.protocol) + be16(SEGMENT_BYTES);

	for (int i = 0; i < SEGMENT_BYTES / 2; i++)
		sum += word[i];
	return folded(sum);
}

INLINE void fill_sums(struct frame *frame)
{
	__u16 *check = (void *)frame->segment + (frame->ip.protocol == IPPROTO_TCP ? 16 : 6), sum;

	frame->ip.check = 0;
	frame->ip.check = ~ip_sum(frame);
	*check = 0;
	sum = ~segment_sum(frame);
	*check = sum ? sum : 0xffff;
}
