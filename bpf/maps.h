/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The maps, shared by all hooks through pins in bpffs. User space writes the first group (tables that
 * come from the ledger) and only reads or sweeps the second (what the packets made). Sizes here are
 * defaults; the loader sets them from [limits] of the configuration before the maps are created. */
#pragma once

#include "abi.h"
#include "bpf.h"

/* tables */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct block_key);
	__type(value, __u32);
} blocks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct address_key);
	__type(value, struct address);
} addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct slot);
} slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct server);
} servers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct pool);
} pools SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct onramp);
} onramps SEC(".maps");

/* made by packets */

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1048576);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1048576);
	__type(key, struct claim_key);
	__type(value, struct claim);
} claims SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct client_key);
	__type(value, struct client);
} clients SEC(".maps");

/* fragments */

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct datagram_key);
	__type(value, struct datagram);
} datagrams SEC(".maps");

#define HELD_BYTES 2048 /* the longest frame that waits */

struct held { /* a place for a later fragment that came before its first */
	__u32 state;    /* HELD_FREE, HELD_BUSY, or the number that it is held under: hold.h */
	__u32 previous; /* of the same datagram */
	__u64 at_ns;
	struct datagram_key key;
	__u32 bytes;
	__u32 zero;
	__u8 frame[HELD_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct held);
} held SEC(".maps");

#define NUMBER_HELD 0 /* in numbers: the next to be held; from NUMBER_ID on, identifications */
#define NUMBER_ID 1
#define ID_COUNTERS 4096 /* conversations that share one only use up identifications faster */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4097); /* NUMBER_ID + ID_COUNTERS */
	__type(key, __u32);
	__type(value, __u32);
} numbers SEC(".maps");

#define CUT_BYTES 9216 /* the largest packet that is cut into fragments: of an interface with jumbo frames */

struct cutting { /* it, while it is cut */
	__u8 zero[2]; /* so that the IPv4 header is aligned */
	__u8 headers[34]; /* Ethernet and IPv4 */
	__u8 content[2 * CUT_BYTES]; /* twice: the verifier adds the largest offset and the largest piece */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cutting);
} cuttings SEC(".maps");

struct trial { /* what a new flow is to become: too large for the stack at the depth of a search */
	struct flow flow;
	struct claim claim;
	struct claim_key key;
	__u32 zero;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct trial);
} scratch SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REASON_MAX);
	__type(key, __u32);
	__type(value, struct drop);
} drops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TRAFFIC_MAX);
	__type(key, __u32);
	__type(value, __u64);
} traffic SEC(".maps");
