/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every struct and enum that crosses the border between the kernel data path and user space.
 *
 * The Python side (src/softunicast/kernel/abi.py) is generated from the BTF of the compiled objects; a
 * test fails when the two differ. Rules: explicit padding only (fields called `zero` are always zero,
 * because hash keys compare bytes), addresses (of the family that the hook is compiled for: family.h) in network
 * byte order, and ports where the comment says be, times in nanoseconds of the coarse monotonic clock unless the name says otherwise.
 */
#pragma once

#include "family.h"

#define ABI_VERSION 4
#define NAME_BYTES 48         /* server and pool names, zero terminated */
#define POOL_SLICES_MAX 256   /* slices one server can use in one pool */
#define SYSTEM_PORTS 1024     /* those below are never given out */
#define LINE_GROUPS 7         /* that share a cache line */
#define LINE_ADDRESSES 16
#define GROUP_BIT (1 << 28)   /* so that no group is 0 */
#define LINE_OWNERS 32
#define GROUP_TRIES 8         /* cache lines that a group can be in */
#define RESOLVERS_MAX 4        /* of one family, in the setting `dns` of a pool; a power of two */
#define ONRAMP_SOURCES_MAX 16 /* prefixes that the clients of one on-ramp can have */
#define TICK_NS (1 << 26)      /* 67 ms: what fits 32 bits of it wraps after 9 years of uptime */
#define CLAIM_BUSY (~0ULL)    /* claim.expires_ns while somebody takes the claim over or frees it */

/* Why a packet was dropped. One enum for every hook; the sentences for people are in
 * docs/reference/drops.md and kernel/reasons.py, and a test compares all three. */
enum reason {
	REASON_NONE = 0,
	/* any hook */
	REASON_MALFORMED,
	REASON_FRAGMENT,
	REASON_FRAGMENT_LOST,
	REASON_ICMP_ERROR,
	REASON_PROTOCOL,
	REASON_INTERNAL,
	/* director */
	REASON_NO_OWNER,
	REASON_LEASE_EXPIRED,
	REASON_STEER_LOOP,
	REASON_NO_NEIGHBOUR,
	REASON_TUNNEL_STRANGER,
	REASON_TUNNEL_ASTRAY,
	/* egress */
	REASON_NO_POOL,
	REASON_NO_SLICE,
	REASON_SLICE_FULL,
	REASON_TABLE_FULL,
	REASON_CLIENT_FLOWS,
	REASON_CLIENT_STATE,
	REASON_CLIENT_RATE,
	REASON_CLIENT_TABLE,
	REASON_NO_FLOW,
	REASON_NO_ROUTE,
	REASON_HOP_LIMIT,
	REASON_TOO_BIG,
	REASON_FAMILY,
	REASON_FILTERED,
	REASON_UNSOLICITED,
	REASON_SPOOFED,
	/* sockets */
	REASON_BIND_REFUSED,
	REASON_BIND_OUTSIDE,
	REASON_SOCKET_TAKEN,
	REASON_NO_ADDRESS,
	REASON_NAMESPACE,
	REASON_NO_RESOLVER,
	REASON_NOT_UPLINK,
	/* guard */
	REASON_GUARD_FOREIGN,
	REASON_GUARD_NOBODY,
	REASON_GUARD_EXPIRED,
	REASON_GUARD_FRAGMENT,
	REASON_GUARD_PROTOCOL,
	REASON_GUARD_TUNNEL,
	REASON_GUARD_SOCKET,
	REASON_MAX,
};

/* What happened to packets that were not dropped. */
enum traffic {
	TRAFFIC_HERE = 0,  /* director: for a slice of this server */
	TRAFFIC_STEERED,   /* director: sent on to the neighbour that owns the slice */
	TRAFFIC_OUT,       /* egress: client packet translated and sent */
	TRAFFIC_IN,        /* egress: reply translated and given to the client */
	TRAFFIC_TO_HOST,   /* egress: client packet for this server itself */
	TRAFFIC_NEW_FLOW,  /* egress: claims made */
	TRAFFIC_REUSED,    /* egress: of these, expired claims taken over */
	TRAFFIC_ICMP_SENT, /* egress: errors sent to clients */
	TRAFFIC_ICMP_MUTED, /* egress: errors not sent, because there were too many */
	TRAFFIC_FAST_OUT,  /* of out: moved by XDP */
	TRAFFIC_FAST_IN,   /* of in: moved by XDP */
	TRAFFIC_HELD,      /* egress: later fragments that wait for their first */
	TRAFFIC_RELEASED,  /* egress: of these, met by it */
	TRAFFIC_CUT,       /* egress: packets cut into fragments, because the way on carries less */
	TRAFFIC_TUNNEL_OUT, /* director, egress: of steered, put into a tunnel */
	TRAFFIC_TUNNEL_IN,  /* director: come out of a tunnel from another server */
	TRAFFIC_SOCKETS,   /* sockets: given a port of a pool */
	TRAFFIC_MAX,
};

enum hook {
	HOOK_NONE = 0,
	HOOK_DIRECTOR,
	HOOK_EGRESS_OUT,
	HOOK_EGRESS_IN,
	HOOK_GUARD,
	HOOK_SOCKET,
	HOOK_UPLINK,
};

/* In the map `handed`: the XDP programs of IPv6, by those of IPv4 that hand frames on to them (handed.h). */
enum handed {
	HANDED_DIRECTOR = 0,
	HANDED_FAST,
	HANDED_MAX,
};

/* Likewise in `handed_tc`, at tc. */
enum handed_tc {
	HANDED_TC_DIRECTOR = 0,
	HANDED_TC_REMOTE,
	HANDED_TC_EGRESS_IN,
	HANDED_TC_EGRESS_OUT,
	HANDED_TC_UPLINK,
	HANDED_TC_GUARD,
	HANDED_TC_MAX,
};

enum server_kind {
	SERVER_UNUSED = 0,
	SERVER_SELF,
	SERVER_NEIGHBOUR, /* same layer 2 segment: reached by rewriting the MAC address */
	SERVER_REMOTE,    /* behind a router: reached through a tunnel (tunnel.h) */
};

/* pool.behaviour, in the words of RFC 4787 and RFC 5382. Without the bits of a protocol: mapping and filtering
 * address-and-port-dependent, which lets one port serve many destinations. */
enum behaviour {
	BEHAVIOUR_MAPPING_TCP = 1, /* one port for all destinations, used by nobody else */
	BEHAVIOUR_MAPPING_UDP = 2,
	BEHAVIOUR_MAPPING_ICMP = 4,
	BEHAVIOUR_FILTERING_TCP = 8, /* anybody may send to that port; needs the mapping */
	BEHAVIOUR_FILTERING_UDP = 16,
	BEHAVIOUR_FILTERING_ICMP = 32,
	BEHAVIOUR_LIMIT = 64,         /* clients have limits, and without an entry no flows */
	BEHAVIOUR_SEVERAL = 128,      /* there may be several addresses: clients have entries that remember theirs */
	BEHAVIOUR_ONE_ADDRESS = 256,  /* a client whose address is full is refused, not moved to another */
};

/* claim.state: what was seen of a TCP conversation. */
enum tcp_seen {
	SEEN_OUT = 1,       /* client sent something after its SYN */
	SEEN_IN = 2,        /* peer answered with other than RST */
	SEEN_FIN_OUT = 4,
	SEEN_FIN_IN = 8,
	SEEN_RST = 16,      /* with a sequence number that its receiver would believe */
	SEEN_COUNTED = 32,  /* not of TCP: the claim is counted against its client */
};

struct settings { /* array, one entry */
	__u32 abi_version;
	__u32 uplink;  /* ifindex */
	__u32 self;    /* index into servers */
	__u32 uplink_mtu;
	__u32 group_mask; /* lines of groups - 1; their number is a power of two */
	__u32 address6[4]; /* be; of the uplink, the source of ICMP errors; 0: none */
	__u32 granted; /* there may be claims that users were granted: search.h asks for them */
	__u64 netns_cookie; /* of the network namespace whose sockets are ours to look after; 0: none */
};

struct block_key { /* LPM trie: announced prefixes, so that unknown addresses in them are named drops */
	__u32 prefix_length;
	ip_address address;
};

/* Where the slots of an address are, in two steps, so that what is often asked for is small. `groups` is a hash table
 * made of cache lines: the group of an address, its first 28 bits, is in the line that its hash names or, where that
 * was full, in one of the next; neighbouring groups share a line. It leads to a line of `addresses`, of which each of
 * the 16 has a word. User space writes both (kernel/address_places.py), with the hash of slots.h. */
struct group { /* written in one store: a reader sees the old entry or the new one */
	__u32 number; /* GROUP_BIT | address, in host order, >> 4; 0: none */
	__u32 line;   /* of addresses */
};

struct group_line {
	struct group groups[LINE_GROUPS];
	__u32 overflowed; /* a group for which there was no room here is further on */
	__u32 zero;
};

struct address_line {
	__u32 where[LINE_ADDRESSES]; /* base << 5 | shift: the slots are base + (port >> shift); 0: no such address */
};

struct owner_line { /* of the slots, in order: indices into servers, 0: nobody */
	__u16 owners[LINE_OWNERS];
};

struct slot { /* what else is known of a slice */
	__u64 deadline_ns; /* CLOCK_MONOTONIC; only meaningful when the owner is this server */
	__u32 epoch;
	__u32 zero;
};

struct server {
	__u8 mac[6];
	__u8 kind; /* enum server_kind */
	__u8 zero;
	__u32 address; /* be; where its tunnels end: of remote ones, and of this one when there are any; else 0 */
	char name[NAME_BYTES];
};

struct hop { /* the next one on the way to a remote server */
	__u64 until_ns; /* good until then */
	__u8 destination[6];
	__u8 source[6];
	__u32 mtu;
};

struct path { /* what routers on the way to a remote server have said */
	__u64 until_ns;
	__u32 mtu;
	__u32 zero;
};

struct pool_slice {
	ip_address address;
	__u32 slot;    /* index into slots: the deadline is there */
	__u16 first;   /* first port, host order */
	__u16 mask;    /* ports - 1; ports is a power of two */
};

struct pool {
	__u64 tcp_opening_ns;
	__u64 tcp_established_ns;
	__u64 tcp_closing_ns;
	__u64 udp_ns;
	__u64 icmp_ns;
	__u64 rest_ns; /* after a mapping that anybody could send to, its port is nobody's for so long */
	__u32 slice_count;
	__u32 behaviour; /* enum behaviour */
	__u32 client_flows_max; /* what one client may have, 0: no limit: flows, */
	__u32 client_tcp_max;   /* of these by protocol, */
	__u32 client_udp_max;
	__u32 client_icmp_max;
	__u32 client_state_max; /* claims, those of ended conversations included, */
	__u32 client_rate_max;  /* and new flows per second */
	__u32 errors_max; /* ICMP errors to one client per second, 0: none */
	__u32 zero;
	char name[NAME_BYTES];
	struct pool_slice slices[POOL_SLICES_MAX];
};

struct pool_dns { /* the resolvers that stand in for those on loopback: see dns.h */
	__u32 resolver_count; /* 0: all that the pool has are of the other family */
	__u32 turn; /* how often one was chosen */
	__u64 owes_since_ns[RESOLVERS_MAX]; /* when it was first asked what it has not answered; 0: nothing */
	ip_address addresses[RESOLVERS_MAX];
};

struct source { /* a prefix */
	ip_address address;
	ip_address mask;
};

struct onramp { /* key: ifindex */
	__u32 pool;
	ip_address address; /* the source of ICMP errors to clients */
	__u32 xdp_mtu; /* attached by XDP too: replies up to this size are redirected; 0: tc only */
	__u32 mss;     /* the most that a TCP SYN may announce, either way; 0: anything, or */
	__u32 mss_mtu; /* what fits packets of this size, and of the route's to the peer; 0: not so */
	__u32 source_count; /* 0: a client may have any address */
	struct source sources[ONRAMP_SOURCES_MAX];
	char name[16];
};

struct exempt_key { /* LPM trie: destinations that an on-ramp does not translate */
	__u32 prefix_length; /* of onramp and address together */
	__u32 onramp;        /* ifindex */
	ip_address address;
};

enum agreement_kind {
	AGREEMENT_NONE = 0,
	AGREEMENT_POOL,    /* leaves from `pool`, or not at all */
	AGREEMENT_EXCUSED, /* may use any port, and leaves as it would without softunicast */
};

struct agreement { /* of a cgroup, or of one socket */
	__u32 kind; /* enum agreement_kind */
	__u32 pool;
};

#define CGROUP_NAME_MAX 256

struct cgroup_name { /* what a cgroup has in common with the one that is made in its place */
	__u64 parent; /* number of the cgroup that it is in */
	char name[CGROUP_NAME_MAX];
};

struct lasting { /* agreement of whichever cgroup is there */
	__u64 cgroup; /* the latest one, which has an entry in `agreements` as long as this is here */
	__u32 pool;
	__u32 unused;
};

struct grant_key { /* an end that a user of this host may bind to */
	__u8 address[16]; /* be; of IPv4 the first four bytes */
	__u32 uid;
	__u16 port; /* be; 0: any of the address */
	__u8 protocol;
	__u8 family; /* 4 or 6 */
};

struct grant {
	__u64 deadline_ns;
	__u32 pool;
	__u32 zero;
};

enum grant_step {
	GRANT_TAKE = 0,
	GRANT_EXTEND,
	GRANT_END,
};

struct flow_key { /* one conversation as the client sees it */
	ip_address client;
	ip_address remote;
	__u16 client_port; /* be; the identifier for ICMP echo */
	__u16 remote_port; /* be; 0 for ICMP echo */
	__u32 onramp;      /* ifindex: overlapping client addresses are isolated; the uplink's: a socket of this host */
	__u8 protocol;
	__u8 zero[3];
};

struct flow {
	__u64 refresh_ns; /* from then on the claim must be asked (and refreshed) before sending */
	__u64 hop_ns;     /* the cached next hop is good until then */
	ip_address local;
	__u16 local_port; /* be */
	__u8 hop_destination[6];
	__u8 hop_source[6];
	__u16 hop_mtu;
	__u32 acknowledged; /* TCP: what the client has acknowledged of the peer's bytes, */
	__u32 sent;         /* and where what it sent itself ends: sequence numbers */
	__u32 hairpin;      /* the next hop is this server itself */
	__u8 client_mac[6]; /* as the claim has it: a packet from another one tells the claim */
	__u8 zero[2];
#if FAMILY == 6
	__u32 zero_end;
#endif
};

struct claim_key { /* one five-tuple taken, as the remote end sees it */
	ip_address local;
	ip_address remote;
	__u16 local_port;  /* be */
	__u16 remote_port; /* be */
	__u8 protocol;
	__u8 zero[3];
};

struct claim {
	__u64 expires_ns; /* the only truth about who has the claim: changed by compare-and-swap */
	struct flow_key flow;
	__u32 state; /* enum tcp_seen */
	__u32 pool;
	__u32 acknowledged; /* TCP: what the peer has acknowledged of the client's bytes, */
	__u32 sent;         /* and where what it sent itself ends; of a mapping: how many conversations it has had.
			     * Of a socket (flow.onramp is 0, and there is no flow): both are its cookie. */
	__u32 since_ticks;      /* of TICK_NS */
	__u32 refresh_in_ticks; /* TCP: a reply need not prolong the claim before */
	__u8 client_mac[6];
	__u8 onramp_mac[6];
};

struct client_key {
	__u32 onramp; /* ifindex */
	ip_address address;
};

struct client { /* only of pools that count: see client.h */
	__u64 next_ns; /* when the next new flow is due, at the rate allowed */
	__u32 claims;  /* that are this client's and counted */
	__u32 tcp;     /* of these, by protocol, those whose conversation is not over */
	__u32 udp;
	__u32 icmp;
	__u32 address; /* number of the one that it leaves from, 0: not chosen yet */
	__u32 zero;
};

struct datagram_key { /* one datagram that came in fragments */
	ip_address source;
	ip_address destination;
	__u32 interface;   /* the on-ramp's; 0: by the uplink; ~0: leaving, with an identification that is not ours */
	ip_id id;          /* be */
	__u8 protocol;
#if FAMILY == 4
	__u8 zero;
#else
	__u8 zero[3];
#endif
};

struct datagram { /* LRU: what its first fragment said */
	__u64 since_ns;
	__u32 last;  /* of those that wait for the first: number in held, 0: none */
	__u32 known; /* the first one has come, and not all have gone on yet */
	__u32 gone;  /* bytes of those that have */
	__u32 total; /* bytes of all, once the one that ends them has gone on */
	__u16 source_port;      /* be */
	__u16 destination_port; /* be */
	ip_id id;               /* be; that it leaves with */
#if FAMILY == 4
	__u16 zero;
#endif
};

struct sample { /* the last packet dropped for a reason, on one CPU */
	__u64 at_ns; /* CLOCK_MONOTONIC, coarse */
	__u8 source[16];      /* be; of IPv4 the first four bytes */
	__u8 destination[16]; /* likewise */
	__u16 source_port;      /* be */
	__u16 destination_port; /* be */
	__u32 interface;
	__u8 protocol;
	__u8 hook;   /* enum hook */
	__u8 family; /* 4 or 6 */
	__u8 zero[5];
};

struct drop { /* per CPU */
	__u64 packets;
	struct sample last;
};

struct sweep { /* in and out of the sweep program */
	__u64 now_ns;
	__u64 freed;
	__u64 live;
	__u64 freed_max; /* enough; only where packets sweep, */
	__u64 live_max;  /* likewise */
	__u32 run;       /* number of the sweep */
	__u32 zero;
};

struct sweeping { /* array, one entry: when the tables were swept, and may be again. See room.h */
	__u64 swept_ns; /* everything was looked at */
	__u64 again_ns; /* a packet may look again */
	__u64 runs;     /* of the sweep program */
	__u64 zero;
};

struct granting { /* in and out of the grant program */
	__u64 until_ns;
	struct claim_key key;
	__u32 pool;
	__u32 step; /* enum grant_step */
	__u32 done; /* it was possible */
	__u32 zero;
};

struct usage { /* of a pool, as of the last sweep that found a flow of it. See usage.h */
	__u64 at_ns;
	__u32 flows;
	__u32 busiest; /* of these, towards one destination: */
	struct claim_key destination;
};

struct usage_cell { /* array: how many flows go to the destinations that share a counter */
	__u32 run; /* in which sweep */
	__u32 flows;
};
