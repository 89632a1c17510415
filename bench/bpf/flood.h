/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The traffic of the packet benchmarks: which flow is number i, and what its packet looks like on each side of
 * the path under test. Generator and sink both compute it from the number, which travels in the payload, so the
 * sink can tell a packet that arrived as it should from one that arrived somehow. User space shares `control`,
 * `tally` and `mapping` (bench/flood.py); layouts are checked there by size. */
#pragma once

#include "bpf.h"

#define FLOWS_MAX (1 << 24)
#define FRAME_BYTES 60
#define CLIENTS_BITS 12 /* 4,096 clients in 10.1.0.0/16 */
#define REMOTES_BITS 12 /* 4,096 destinations in 198.18.0.0/15 (RFC 2544) */
#define REMOTE_PORT 443
#define TTL 64

enum order { ORDER_RISING, ORDER_RANDOM };

struct control { /* array, one entry */
	__u32 counter;   /* packets made so far */
	__u32 flows;     /* numbers are below this */
	__u32 order;     /* enum order */
	__u32 interface; /* where the generator sends */
	__u32 local;     /* be; the source that requests must arrive with; 0: the client's own */
	__u32 record;    /* sink: check checksums and note the translated source of each flow */
	__u8 to[6];      /* Ethernet addresses of generated frames */
	__u8 from[6];
};

struct tally { /* array, one entry: written on one core only */
	__u64 right;        /* arrived as they should */
	__u64 wrong;        /* arrived, but not for the flow that they name, or not translated */
	__u64 bad_checksum; /* looked at while recording only */
};

struct mapping { /* what the path made of a flow's source */
	__u32 address; /* be */
	__u16 port;    /* be */
	__u16 seen;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct control);
} control SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tally);
} tally SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct mapping);
} mapping SEC(".maps");

static const __u32 first = 0;

struct frame {
	struct ethhdr eth;
	struct iphdr ip;
	struct udphdr udp;
	__u32 number;
	__u8 rest[14];
} __attribute__((packed));

struct ends { /* all be */
	__u32 source;
	__u32 destination;
	__u16 source_port;
	__u16 destination_port;
};

INLINE __u32 mix(__u32 value)
{
	value ^= value >> 16;
	value *= 0x7feb352d;
	value ^= value >> 15;
	value *= 0x846ca68b;
	return value ^ value >> 16;
}

/* The packet of flow `number` as its client sends it. Clients and their ports alone tell flows apart. */
INLINE struct ends request_of(__u32 number)
{
	__u32 client = number & ((1 << CLIENTS_BITS) - 1);

	return (struct ends){
		.source = be32(0x0a010000 + client),
		.source_port = be16(1024 + (number >> CLIENTS_BITS)),
		.destination = be32(0xc6120000 + (mix(number) >> (32 - REMOTES_BITS))),
		.destination_port = be16(REMOTE_PORT),
	};
}

INLINE __u32 next_number(struct control *control)
{
	__u32 count = control->counter++;

	if (control->order == ORDER_RANDOM)
		return (__u64)mix(count) * control->flows >> 32;
	return count % control->flows;
}

INLINE __u16 folded(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)sum;
}

/* The sums that the checksum fields complement; `ends` as in the packet. */
INLINE __u64 ip_sum(const struct ends *ends, __u8 ttl)
{
	return (__u64)ends->source + ends->destination + be16(0x4500) + be16(FRAME_BYTES - ETH_HLEN) +
	       be16(ttl << 8 | IPPROTO_UDP);
}

INLINE __u64 udp_sum(const struct ends *ends, __u32 number)
{
	return (__u64)ends->source + ends->destination + ends->source_port + ends->destination_port +
	       2 * be16(FRAME_BYTES - ETH_HLEN - sizeof(struct iphdr)) + be16(IPPROTO_UDP) + number;
}

/* Writes the whole packet. Returns 0, or nonzero when the frame has no room for it. */
INLINE int write_frame(struct xdp_md *xdp, const struct control *control, const struct ends *ends, __u32 number)
{
	struct frame *frame = (void *)(long)xdp->data;
	__u16 check;

	if ((void *)(frame + 1) > (void *)(long)xdp->data_end)
		return -1;
	copy(frame->eth.h_dest, control->to, ETH_ALEN);
	copy(frame->eth.h_source, control->from, ETH_ALEN);
	frame->eth.h_proto = be16(ETH_P_IP);
	frame->ip.version = 4;
	frame->ip.ihl = 5;
	frame->ip.tos = 0;
	frame->ip.tot_len = be16(FRAME_BYTES - ETH_HLEN);
	frame->ip.id = 0;
	frame->ip.frag_off = 0;
	frame->ip.ttl = TTL;
	frame->ip.protocol = IPPROTO_UDP;
	frame->ip.saddr = ends->source;
	frame->ip.daddr = ends->destination;
	frame->ip.check = ~folded(ip_sum(ends, TTL));
	frame->udp.source = ends->source_port;
	frame->udp.dest = ends->destination_port;
	frame->udp.len = be16(FRAME_BYTES - ETH_HLEN - sizeof(struct iphdr));
	check = ~folded(udp_sum(ends, number));
	frame->udp.check = check ? check : 0xffff;
	frame->number = number;
	zero_fill(frame->rest, sizeof(frame->rest));
	return 0;
}
