/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Finding and claiming a free port for a new flow: every slice of the pool that has a live lease, every port
 * of each slice exactly once, from a random start with a random odd step (RFC 6056), until one is free. When
 * this says that nothing is free, nothing is: each port was taken towards this destination when it was tried.
 * A tuple that a kernel socket holds (also one that never heard of softunicast) counts as taken.
 *
 * Only when nothing is free, a port is used again early whose TCP conversation was followed to its end
 * (RFC 6888 REQ-8 a), a moment after that end.
 *
 * That a slice is exhausted towards a destination is remembered, for a second at most and never past the moment in
 * which one of the claims that were in the way can be free: what changes a claim's life meanwhile sets it to a second
 * at least (the shortest timer there is), and an ended conversation's port waits two. So the answer stays the exact
 * one, but for ports that sockets give up; and a client whose connections are refused does not make the server try
 * every port for each of them. One port is tried even so. */
#pragma once

#include "claim.h"
#include "device.h"
#include "scratch.h"

enum holder { HOLDER_NONE, HOLDER_SOCKET, HOLDER_TIME_WAIT };

INLINE void fill_tuple(struct bpf_sock_tuple *tuple, const struct claim_key *key)
{
	copy(&tuple->OF_FAMILY().saddr, &key->remote, sizeof(ip_address));
	tuple->OF_FAMILY().sport = key->remote_port;
	copy(&tuple->OF_FAMILY().daddr, &key->local, sizeof(ip_address));
	tuple->OF_FAMILY().dport = key->local_port;
}

INLINE struct bpf_sock *tcp_socket_at(void *context, struct bpf_sock_tuple *tuple)
{
	return bpf_skc_lookup_tcp(context, tuple, sizeof(tuple->OF_FAMILY()), BPF_F_CURRENT_NETNS, 0);
}

INLINE struct bpf_sock *udp_socket_at(void *context, struct bpf_sock_tuple *tuple)
{
	return bpf_sk_lookup_udp(context, tuple, sizeof(tuple->OF_FAMILY()), BPF_F_CURRENT_NETNS, 0);
}

/* The kernel's socket of a tuple, to be released. */
INLINE struct bpf_sock *tcp_socket_of(void *context, const struct claim_key *key)
{
	struct bpf_sock_tuple tuple;

	fill_tuple(&tuple, key);
	return tcp_socket_at(context, &tuple);
}

INLINE struct bpf_sock *udp_socket_of(void *context, const struct claim_key *key)
{
	struct bpf_sock_tuple tuple;

	fill_tuple(&tuple, key);
	return udp_socket_at(context, &tuple);
}

/* Which kernel socket holds the tuple, of those that packets of the context's device can reach? TCP: of any state,
 * TIME_WAIT and listeners included. */
INLINE enum holder holder_of(void *context, const struct claim_key *key, struct bpf_sock_tuple *tuple)
{
	enum holder holder = HOLDER_SOCKET;
	struct bpf_sock *sock;

	fill_tuple(tuple, key);
	if (key->protocol == IPPROTO_TCP) {
		sock = tcp_socket_at(context, tuple);
		if (!sock)
			return HOLDER_NONE;
		if (sock->state == STATE_TIME_WAIT)
			holder = HOLDER_TIME_WAIT;
		bpf_sk_release(sock);
		return holder;
	}
	sock = key->protocol == IPPROTO_UDP ? udp_socket_at(context, tuple) : 0;
	if (!sock)
		return HOLDER_NONE;
	bpf_sk_release(sock);
	return HOLDER_SOCKET;
}

INLINE int socket_holds(void *context, const struct claim_key *key)
{
	struct bpf_sock_tuple tuple;

	return holder_of(context, key, &tuple) != HOLDER_NONE;
}

/* Likewise, of the tuple that a search has come to, whatever device the socket is for. */
INLINE enum holder holder_here(void *context, struct search *search)
{
	enum holder holder;

	if ((search->socket || search->key.protocol == IPPROTO_UDP) && at_port(search->net, &search->key, 1) == PORT_FREE)
		return HOLDER_NONE;
	holder = holder_of(context, &search->key, &search->tuple);
	return holder == HOLDER_NONE && at_port(search->net, &search->key, 0) == PORT_HELD ? HOLDER_SOCKET : holder;
}

/* Does somebody have the port of `key`, which has no remote end, towards everybody: because a user was granted it? */
INLINE int is_granted(const struct claim_key *key, __u64 now)
{
	__u32 first = 0;
	struct settings *self = bpf_map_lookup_elem(&settings, &first);
	struct claim *claim;

	if (!self || !self->granted)
		return 0;
	claim = bpf_map_lookup_elem(&claims, key);
	return claim && alive(claim, now) && !claim->flow.onramp;
}

/* Likewise, of the port that a search is about to find. The search for a mapping need not ask: it meets what is granted as
 * it meets another mapping. */
INLINE int is_granted_here(struct search *search)
{
	struct claim_key *key = &search->towards_all;

	if (is_unspecified(search->key.remote) && !search->key.remote_port)
		return 0;
	zero_fill(key, sizeof(*key));
	key->local = search->key.local;
	key->local_port = search->key.local_port;
	key->protocol = search->key.protocol;
	return is_granted(key, search->now_ns);
}

#define REUSE_AFTER_NS 2000000000ULL /* the last retransmissions of the conversation before are over by then */
#define EXHAUSTED_NS 1000000000ULL   /* at most as long as the least timer of a pool */

struct searching { /* on the stack, where pointers can be kept */
	void *context; /* the program's */
	struct search *search;
	const struct pool *pool;
	__u64 connects; /* a socket, to where the port is to be free */
};

/* What else must come true for a port that is free, by whoever searches: a socket must be bound to it. */
INLINE int settle(struct searching *searching);

/* May the claim of an ended conversation change hands before it expires? */
INLINE int reusable(const struct search *search, const struct claim *claim, __u64 expires)
{
	return search->early && claim->pool == search->claim.pool && ended(claim->state) &&
	       expires <= search->now_ns + search->closing_ns - REUSE_AFTER_NS;
}

/* Undoes insert_claim, before anybody can have used the claim. */
INLINE void give_back(struct search *search)
{
	bpf_map_delete_elem(&claims, &search->key);
}

/* A claim is in the way: the slice cannot be exhausted for longer than that lasts. */
INLINE void wait_for(struct search *search, const struct claim *claim, __u64 free)
{
	struct exhausted *known = &search->exhausted;
	__u64 early = free - search->closing_ns + REUSE_AFTER_NS;

	if (free == CLAIM_BUSY) /* being freed, perhaps */
		free = early = 0;
	if (free < known->until_ns)
		known->until_ns = free;
	if (early < known->early_until_ns && search->key.protocol == IPPROTO_TCP && ended(claim->state) &&
	    claim->pool == search->claim.pool)
		known->early_until_ns = early;
}

INLINE int insert_claim(struct search *search)
{
	long error = bpf_map_update_elem(&claims, &search->key, &search->claim, BPF_NOEXIST);
	struct claim *old;
	__u64 expires, free;

	if (!error)
		return 1;
	if (error != -17 /* EEXIST */) {
		search->full = 1;
		return 0;
	}
	old = bpf_map_lookup_elem(&claims, &search->key);
	if (!old)
		return 0; /* swept away this moment: the next port will do */
	expires = *(volatile __u64 *)&old->expires_ns;
	if (expires != CLAIM_BUSY && search->key.protocol == IPPROTO_TCP && ended(old->state))
		search->endings = 1;
	if (expires > search->now_ns) {
		wait_for(search, old, expires);
		if (!reusable(search, old, expires))
			return 0;
	} else {
		free = expires + rest_ns(&search->key, old);
		if (free > search->now_ns) {
			wait_for(search, old, free);
			return 0;
		}
	}
	if (__sync_val_compare_and_swap(&old->expires_ns, expires, CLAIM_BUSY) != expires)
		return 0;
	drop_flow_of(&search->key, old, &search->former);
	old->flow = search->claim.flow;
	old->state = search->claim.state;
	old->pool = search->claim.pool;
	old->since_ticks = search->now_ns / TICK_NS;
	old->refresh_in_ticks = 0;
	old->acknowledged = search->claim.acknowledged;
	old->sent = search->claim.sent;
	copy(old->client_mac, search->claim.client_mac, sizeof(old->client_mac));
	copy(old->onramp_mac, search->claim.onramp_mac, sizeof(old->onramp_mac));
	*(volatile __u64 *)&old->expires_ns = search->until_ns;
	search->reused = 1;
	return 1;
}

/* Is a kernel socket in the way? To another socket an ended conversation of the kernel's is not, when nothing else is
 * free. */
INLINE int is_held(struct searching *searching)
{
	struct search *search = searching->search;
	enum holder holder = holder_here(searching->context, search);

	if (holder == HOLDER_TIME_WAIT && search->socket) {
		search->endings = 1;
		return !search->early;
	}
	return holder != HOLDER_NONE;
}

static long try_port(__u32 index, struct searching *searching)
{
	struct search *search = searching->search;
	__u16 port = search->first + (search->port & search->mask);

	search->port += search->stride;
	if (search->mask == 0xffff && port < SYSTEM_PORTS) /* of a whole address */
		return 0;
	search->key.local_port = be16(port);
	if (!insert_claim(search))
		return search->full ? 1 : 0;
	if (is_granted_here(search) || is_held(searching) || !settle(searching)) {
		give_back(search);
		search->reused = 0;
		return search->full ? 1 : 0;
	}
	search->found = 1;
	return 1;
}

/* How often every slice is looked at, in this order: at the client's address; unless the pool keeps it to that, at the
 * others; then the same for ports of conversations that have ended. */
enum pass { PASS_OWN, PASS_OTHERS, PASS_OWN_EARLY, PASS_OTHERS_EARLY, PASSES };

/* Is the slice known to be exhausted still? Begins to find out anew. */
INLINE int known_exhausted(struct search *search, const struct pool_slice *slice)
{
	struct exhausted_key *key = &search->slice;
	struct exhausted *known;

	key->local = search->key.local;
	key->remote = search->key.remote;
	key->pool = search->claim.pool;
	key->first = slice->first;
	key->remote_port = search->key.remote_port;
	key->protocol = search->key.protocol;
	known = bpf_map_lookup_elem(&exhausted, key);
	if (!known || known->until_ns <= search->now_ns)
		return 0;
	if (known->early_until_ns > search->now_ns)
		return 1;
	search->endings = 1;
	return !search->early;
}

static long try_slice(__u32 index, struct searching *searching)
{
	struct search *search = searching->search;
	const struct pool *pool = searching->pool;
	const struct pool_slice *slice;
	struct slot *slot;
	__u64 at; /* 64 bits: the verifier loses track of a 32 bit remainder */
	__u32 random, pass, others;

	if (!pool->slice_count)
		return 1;
	pass = index / pool->slice_count;
	others = pass == PASS_OTHERS || pass == PASS_OTHERS_EARLY;
	if (pass >= PASS_OWN_EARLY && !search->endings)
		return 1;
	if (others && (!search->address || (pool->behaviour & BEHAVIOUR_ONE_ADDRESS)))
		return 0;
	search->early = pass >= PASS_OWN_EARLY;
	at = ((__u64)search->first_slice + index) % pool->slice_count;
	if (at >= POOL_SLICES_MAX)
		return 1;
	slice = &pool->slices[at];
	if (search->address && (address_number(slice->address) == search->address) == others)
		return 0;
	if (search->only && others)
		return 0;
	slot = bpf_map_lookup_elem(&slots, &slice->slot);
	if (!slot || slot->deadline_ns <= search->now_ns)
		return 0; /* its lease ran out: the next slice */
	search->held = 1;
	random = bpf_get_prandom_u32();
	search->key.local = slice->address;
	search->first = slice->first;
	search->mask = slice->mask;
	search->port = random;
	search->stride = random >> 16 | 1;
	search->exhausted.until_ns = search->exhausted.early_until_ns = search->now_ns + EXHAUSTED_NS;
	if (try_port(0, searching))
		return 1;
	if (!search->socket && known_exhausted(search, slice))
		return 0;
	bpf_loop(search->mask, try_port, searching, 0);
	if (search->found || search->full)
		return 1;
	if (search->socket) /* asks anew each time, at its program's own cost: other sockets come and go unseen */
		return 0;
	bpf_map_update_elem(&exhausted, &search->slice, &search->exhausted, BPF_ANY);
	return 0;
}

/* Finds a free port for search->claim towards search->key's remote end, none for a mapping. */
INLINE int find_port(void *context, struct search *search, const struct pool *pool, const int connects)
{
	struct searching searching = {.context = context, .search = search, .pool = pool, .connects = connects};

	bpf_loop(pool->slice_count * PASSES, try_slice, &searching, 0);
	if (search->full)
		return REASON_TABLE_FULL;
	if (!search->found)
		return search->held ? REASON_SLICE_FULL : REASON_NO_SLICE;
	return REASON_NONE;
}
