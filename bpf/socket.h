/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Sockets of this host that leave from a pool: what the hooks of connect, bind and close share.
 *
 * A socket claims its five-tuple in the same table as a forwarded flow, by the same search. Its claim has no flow and no
 * on-ramp (flow.onramp is 0), and only has to live until the kernel's own table of sockets shows the tuple as taken; the
 * search asks that one, too. Where a port is to be its socket's towards everybody (endpoint-independent pools, and
 * UDP sockets that are bound and may send to anybody) the claim has no remote end, and lives until the socket is closed. So
 * does the claim of a socket that is bound to a device, which the kernel's table does not show to others.
 *
 * These hooks run in the context of programs, which others interrupt: what they work on is at a desk that they take for
 * as long (`desks`), not in scratch.h's. A socket has storage of its own only where it must be known until it is closed
 * what it holds: to allocate that costs as much as all else. The kernel holds the socket's lock meanwhile. They run for every program of the host, so their
 * first question is whether the socket is in the network namespace that this data path is for. */
#pragma once

#include "agreement.h"
#include "count.h"
#include "inside.h"
#include "netns.h"
#include "pairing.h"
#include "search.h"
#include "slots.h"

#define SOCKET_CLAIM_NS 2000000000ULL /* between two steps of one system call; no less than exhausted lasts */
#define UNTIL_CLOSED_NS (1ULL << 55)  /* a year */

#define ALLOW 1
#define REFUSE 0 /* with EPERM, or what bpf_set_retval said */
#define SOL_SOCKET 1
#define SO_REUSEADDR 2
#define EADDRINUSE 98
#define EADDRNOTAVAIL 99

/* Never called: see name_types in rewrite.h. */
static __attribute__((noinline, used)) int name_socket(struct bpf_sock *sock)
{
	return 0;
}

struct chosen { /* what is to be freed when a socket is closed */
	struct claim_key held; /* no local port: nothing */
	__u64 closing_ns;      /* that long after */
};

/* The agreement of a socket that its program uses this moment. One that was given its port, and has sent nothing since, is in
 * that of the program that made it, whoever uses it now: so the programs that look at its packets will say. */
INLINE struct agreement agreement_here(struct bpf_sock *sock, ip_address local, int *told)
{
	struct agreement found = agreement_now(sock, told), *here;
	const struct cgroup *at;
	__u64 number;

	if (*told || !sock->src_port || !has_slices(local) || cgroup_of(sock) == bpf_get_current_cgroup_id())
		return found;
	zero_fill(&found, sizeof(found));
	at = inside(sock)->sk_cgrp_data.cgroup;
#pragma clang loop unroll(disable)
	for (int level = 0; level < CGROUP_DEPTH_MAX; level++) {
		number = at->kn->id;
		here = bpf_map_lookup_elem(&agreements, &number);
		if (here)
			return *here;
		if (!at->self.parent)
			break;
		at = at->self.parent->cgroup;
	}
	return found;
}

#define DESKS 512
#define DESKS_TRIED 64

struct desk { /* to work at: it is too much for the stack */
	__u64 busy;
	struct search search;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 512); /* DESKS */
	__type(key, __u32);
	__type(value, struct desk);
} desks SEC(".maps");

#define RECENTS 4096

struct recent { /* which tuple a socket claimed that has no storage */
	__u64 cookie;
	struct claim_key key;
};

/* By the cookie. Only for sockets whose connect() fails after the claim, which forget whom they were for: a place that
 * another one has taken since means that the claim lasts its two seconds. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4096); /* RECENTS */
	__type(key, __u32);
	__type(value, struct recent);
} recents SEC(".maps");

INLINE struct recent *recent_of(__u64 cookie)
{
	__u32 at = cookie % RECENTS;

	return bpf_map_lookup_elem(&recents, &at);
}

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct chosen);
} chosen_of SEC(".maps");

struct ends { /* of the socket and what its program asks for */
	ip_address local;
	ip_address remote;
	__u16 local_port;  /* be */
	__u16 remote_port; /* be */
	__u8 protocol;
};

INLINE int refuse_socket(enum reason reason, const struct ends *ends, int error)
{
	struct drop *drop = dropped(reason, HOOK_SOCKET, 0, bpf_ktime_get_coarse_ns());

	if (drop) {
		copy(drop->last.source, &ends->local, sizeof(ends->local));
		copy(drop->last.destination, &ends->remote, sizeof(ends->remote));
		drop->last.source_port = ends->local_port;
		drop->last.destination_port = ends->remote_port;
		drop->last.protocol = ends->protocol;
	}
	if (error)
		bpf_set_retval(-error);
	return REFUSE;
}

enum whose { WHOSE_OTHERS, WHOSE_OURS, WHOSE_ELSEWHERE /* ours to look after, but in another network namespace */ };

INLINE enum whose whose(void *context)
{
	__u32 first = 0;
	struct settings *self = bpf_map_lookup_elem(&settings, &first);

	if (!self || !self->netns_cookie)
		return WHOSE_OTHERS;
	return bpf_get_netns_cookie(context) == self->netns_cookie ? WHOSE_OURS : WHOSE_ELSEWHERE;
}

INLINE int is_claim_of(const struct claim *claim, __u64 cookie)
{
	return !claim->flow.onramp && claim->acknowledged == (__u32)cookie && claim->sent == cookie >> 32;
}

/* Frees a claim of the socket's, if it is its still: at once, or at a later time. */
INLINE void free_own(__u64 cookie, struct claim_key *key, __u64 later_ns)
{
	struct claim *claim = bpf_map_lookup_elem(&claims, key);
	__u64 expires, until = later_ns ? later_ns : CLAIM_BUSY;

	if (!claim)
		return;
	expires = *(volatile __u64 *)&claim->expires_ns;
	if (expires != CLAIM_BUSY && is_claim_of(claim, cookie) &&
	    __sync_val_compare_and_swap(&claim->expires_ns, expires, until) == expires && !later_ns)
		bpf_map_delete_elem(&claims, key);
}

INLINE __u64 cookie_of(const struct search *search)
{
	return search->claim.acknowledged | (__u64)search->claim.sent << 32;
}

/* Is the claim in the way the socket's own? */
INLINE int is_own(const struct search *search)
{
	struct claim *claim = bpf_map_lookup_elem(&claims, &search->key);

	return claim && is_claim_of(claim, cookie_of(search));
}

/* A desk that nobody works at: that of this CPU, unless one was interrupted there. 0: none. */
INLINE struct desk *take_desk(void)
{
	__u32 first = bpf_get_smp_processor_id(), at;
	struct desk *desk;

#pragma clang loop unroll(disable)
	for (int tries = 0; tries < DESKS_TRIED; tries++) {
		at = (first + tries) % DESKS;
		desk = bpf_map_lookup_elem(&desks, &at);
		if (desk && !__sync_val_compare_and_swap(&desk->busy, 0, 1))
			return desk;
	}
	return 0;
}

INLINE void leave_desk(struct desk *desk)
{
	__sync_lock_test_and_set(&desk->busy, 0);
}

/* Begins a search for the socket. `whole`: the port is to be its own towards everybody. `lasts`: until it is closed. */
INLINE void begin_search(struct bpf_sock_addr *context, struct search *search, const struct pool *pool, __u32 pool_key,
			 const struct ends *ends, int whole, int lasts)
{
	__u64 cookie = bpf_get_socket_cookie(context), now = bpf_ktime_get_coarse_ns();

	zero_fill(search, sizeof(*search));
	search->now_ns = now;
	search->net = netns_of(context->sk);
	search->socket = 1;
	search->until_ns = search->claim.expires_ns = now + (lasts ? UNTIL_CLOSED_NS : SOCKET_CLAIM_NS);
	search->closing_ns = pool->tcp_closing_ns;
	search->claim.since_ticks = now / TICK_NS;
	search->claim.pool = pool_key;
	search->claim.acknowledged = cookie;
	search->claim.sent = cookie >> 32;
	/* Programs leave from one address each, as clients do. */
	search->claim.flow.client = number_address(mixed(bpf_get_current_cgroup_id()));
	search->claim.flow.protocol = search->key.protocol = ends->protocol;
	if (!whole) {
		search->key.remote = ends->remote;
		search->key.remote_port = ends->remote_port;
	}
}

/* What was found is to be freed when the socket is closed. */
INLINE void hold_claim(struct chosen *chosen, const struct search *search, int lasts)
{
	chosen->held = search->key;
	chosen->closing_ns = lasts && search->key.protocol == IPPROTO_TCP ? search->closing_ns : 0;
}

/* Finds a port of the address that the socket has. Only slices of that one are looked at. */
INLINE int find_port_at(struct bpf_sock_addr *context, struct search *search, const struct pool *pool,
			const struct ends *ends, const int connects)
{
	int reason;

	search->only = 1;
	search->address = address_number(ends->local);
	search->first_slice = bpf_get_prandom_u32();
	reason = find_port(context, search, pool, connects);
	if (!reason && !same_address(search->key.local, ends->local)) { /* another one with the same number */
		give_back(search);
		reason = REASON_NO_SLICE;
	}
	return reason;
}

/* The pool of an agreement has no slices of this family, or is gone. */
INLINE int why_no_pool(__u32 pool_key);

struct looking { /* for the slice that a bound port is in */
	ip_address address;
	__u64 now_ns;
	__u32 pool;
	__u16 port; /* host order */
	__u16 found;
};

static long look_at_slice(__u32 index, struct looking *looking)
{
	struct pool *pool = bpf_map_lookup_elem(&pools, &looking->pool);
	struct pool_slice *slice;
	struct slot *slot;

	if (!pool || index >= POOL_SLICES_MAX)
		return 1;
	slice = &pool->slices[index];
	if (!same_address(slice->address, looking->address) || (looking->port & ~slice->mask) != slice->first)
		return 0;
	slot = bpf_map_lookup_elem(&slots, &slice->slot);
	looking->found = slot && slot->deadline_ns > looking->now_ns;
	return 1;
}

/* May a socket of the pool use this local end? */
INLINE int in_pool(const struct pool *pool, __u32 pool_key, const struct ends *ends)
{
	struct looking looking = {.address = ends->local,
				  .now_ns = bpf_ktime_get_coarse_ns(),
				  .pool = pool_key,
				  .port = be16(ends->local_port)};

	if (looking.port < SYSTEM_PORTS)
		return 0;
	bpf_loop(pool->slice_count, look_at_slice, &looking, 0);
	return looking.found;
}
