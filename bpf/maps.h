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

#if FAMILY == 4

/* BPF_F_MMAPABLE: what is written in one store is read so, and lines begin where cache lines do. */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct group_line);
} groups SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct address_line);
} addresses SEC(".maps");

#else

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, ip_address);
	__type(value, __u32); /* as address_line.where */
} addresses SEC(".maps");

#endif

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 2048);
	__type(key, __u32);
	__type(value, struct owner_line);
} owners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
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

struct { /* those that tunnels may come from: address (be) -> number in servers */
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u32);
} peers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct pool);
} pools SEC(".maps");

struct { /* by number of the pool; only of those that have some */
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct pool_dns);
} resolvers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct onramp);
} onramps SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct exempt_key);
	__type(value, __u32);
} exempt SEC(".maps");

/* made by packets */

struct { /* by number of the server */
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct hop);
} hops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct path);
} paths SEC(".maps");

/* All entries of IPv4's flows and claims are there from the start: to allocate one when a flow begins would cost as
 * much as all else that is done for it. IPv6's take their memory as they come, because most servers have few. */
#if FAMILY == 4
#define FLOWS_FLAGS 0
#else
#define FLOWS_FLAGS BPF_F_NO_PREALLOC
#endif

/* Entry and what the kernel adds to it, 48 bytes, are two cache lines each. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, FLOWS_FLAGS);
	__uint(max_entries, 262144);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, FLOWS_FLAGS);
	__uint(max_entries, 262144);
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

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sweeping);
} sweeps SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct usage);
} usages SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 131072);
	__type(key, __u32);
	__type(value, struct usage_cell);
} usage_cells SEC(".maps");

struct { /* when the next ICMP error to a client is due, at the rate allowed */
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct client_key);
	__type(value, __u64);
} told SEC(".maps");

struct exhausted_key { /* a pool's slice, towards one destination */
	ip_address local;
	ip_address remote;
	__u32 pool;
	__u16 first;       /* first port, host order */
	__u16 remote_port; /* be */
	__u8 protocol;
	__u8 zero[3];
};

struct exhausted { /* no port was free at the last exact search, and none can be before: see search.h */
	__u64 until_ns;
	__u64 early_until_ns; /* likewise, by taking over an ended conversation */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct exhausted_key);
	__type(value, struct exhausted);
} exhausted SEC(".maps");

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

#if FAMILY == 4

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

#endif

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
