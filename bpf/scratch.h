/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What egress works on, per CPU, because it is too large for the stack: 512 bytes, for all that call one another.
 * A packet is dealt with to its end before the next one on its CPU, so one of each is enough. Pointers cannot be
 * kept here. */
#pragma once

#include "maps.h"
#include "quote.h"

struct search { /* the state of one search for a free port, over all slices of a pool */
	struct claim_key key;
	struct claim claim; /* what a free port is given */
	struct claim_key towards_all; /* the port of `key`, and any remote end */
	struct flow_key former; /* who had the claim that is taken over */
	struct exhausted_key slice; /* the one that is being searched, */
	struct exhausted exhausted; /* and what is known of it so far */
	struct bpf_sock_tuple tuple; /* `key` as the kernel's lookups want it */
	__u64 net; /* the kernel's struct of the network namespace */
	__u64 until_ns;
	__u64 now_ns;
	__u64 closing_ns; /* how long ended conversations keep their claim */
	__u32 address; /* number of the client's, which is tried first. 0: any */
	__u32 counted; /* SEEN_COUNTED: the client has the claim's place */
	__u16 first_slice;
	__u16 port;   /* next to try is first + ((port) & mask) */
	__u16 stride; /* odd: visits every port of the slice once */
	__u16 first;
	__u16 mask;
	__u8 held;    /* a slice with a live lease was there */
	__u8 full;    /* the claims table has no room */
	__u8 found;
	__u8 reused;
	__u8 endings; /* ended conversations were in the way */
	__u8 early;   /* take these over */
	__u8 socket;  /* it is a socket that wants the port, */
	__u8 only;    /* of this very address, */
	__u8 known;   /* its claim is there already: another CPU opens the flow, too */
	__u8 unbound; /* and the kernel would not have it */
};

struct trial { /* what a new flow is to become */
	struct flow flow;
	struct search search;
	struct flow_key mapping; /* that of the client's address and port, in pools that map independently, */
	struct claim_key mapped; /* and its claim */
};

struct cut_bytes { /* what an error of ours quotes: IP headers with options, at most 20 bytes of transport header */
	__u8 bytes[IP_BYTES_MAX + 20];
};

struct scratch {
	struct packet packet;
	struct quote quote;       /* of an ICMP error */
	struct cut_bytes quoted;  /* in one that we make (icmp.h) */
	struct flow_key flow_key; /* the packet's, */
	struct claim_key claim_key; /* its claim's, */
	struct claim_key mapping;   /* and that of a claim for any remote end */
	struct bpf_fib_lookup fib;
#if FAMILY == 6
	struct datagram_key datagram_key; /* of a fragment: hold.h */
#endif
	struct trial trial;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratch SEC(".maps");

INLINE struct scratch *scratch_here(void)
{
	__u32 only = 0;

	return bpf_map_lookup_elem(&scratch, &only);
}
