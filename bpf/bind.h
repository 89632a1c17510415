/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A program binds a socket, cgroup/bind at the root of cgroup2. Ours to decide is only a shared address:
 *
 *   granted to its user        -> allowed; any port of an address: as in an agreement
 *   in no agreement            -> refused (EPERM)
 *   excused                    -> allowed
 *   in an agreement, no port   -> a free one of the pool; where the socket wants it late, when it connects
 *   in an agreement, a port    -> allowed in a live slice of the pool, else refused (EADDRNOTAVAIL)
 *
 * Any other address is the host's, "any" too: what leaves from such a socket does so from an address of the host. */
#pragma once

#include "granted.h"
#include "inside.h"
#include "socket.h"

/* Chooses a port of the address. */
INLINE int choose_port(struct bpf_sock_addr *context, struct search *search, const struct pool *pool,
		       const struct ends *ends)
{
	int yes = 1, reason;

	/* Others may be connected from there, to whom this one is not, and cannot be: connect and sendmsg see to that. The
	 * search cannot know them all, and the kernel would refuse the port that was found. */
	bpf_setsockopt(context, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
	reason = find_port_at(context, search, pool, ends, 0);
	if (!reason)
		context->user_port = search->key.local_port;
	return reason;
}

/* Has somebody claimed the port towards everybody, who is not this socket? */
INLINE int claim_port(struct search *search, const struct ends *ends)
{
	search->key.local = ends->local;
	search->key.local_port = ends->local_port;
	if (insert_claim(search) || is_own(search))
		return REASON_NONE;
	return search->full ? REASON_TABLE_FULL : REASON_SOCKET_TAKEN;
}

INLINE int bind_to(struct bpf_sock_addr *context, struct bpf_sock *sock, __u32 pool_key, struct ends *ends,
		   struct search *search)
{
	struct pool *pool = bpf_map_lookup_elem(&pools, &pool_key);
	struct chosen *chosen;
	int reason, lasts;

	if (!pool)
		return why_no_pool(pool_key);
	if (ends->local_port && !in_pool(pool, pool_key, ends))
		return REASON_BIND_OUTSIDE;
	/* TCP is told apart by both ends: several sockets may share a bound port, unless it is one user's. */
	if (ends->local_port && ends->protocol == IPPROTO_TCP && !maps_independently(pool, IPPROTO_TCP)) {
		struct claim_key towards_all = {
			.local = ends->local, .local_port = ends->local_port, .protocol = IPPROTO_TCP};

		return is_granted(&towards_all, bpf_ktime_get_coarse_ns()) ? REASON_SOCKET_TAKEN : REASON_NONE;
	}
	chosen = bpf_sk_storage_get(&chosen_of, sock, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!chosen)
		return REASON_INTERNAL;
	lasts = ends->protocol != IPPROTO_TCP || maps_independently(pool, IPPROTO_TCP);
	begin_search(context, search, pool, pool_key, ends, 1, lasts);
	if (chosen->held.local_port) /* the kernel refused that one */
		free_own(cookie_of(search), &chosen->held, 0);
	reason = ends->local_port ? claim_port(search, ends) : choose_port(context, search, pool, ends);
	if (!reason)
		hold_claim(chosen, search, lasts);
	return reason;
}

INLINE int bind(struct bpf_sock_addr *context, struct ends *ends)
{
	struct bpf_sock *sock = context->sk;
	struct agreement agreement;
	struct desk *desk;
	int reason;

	if (!sock || is_loopback(ends->local) || whose(context) != WHOSE_OURS || !is_ours(ends->local))
		return ALLOW;
	if (sock->src_port) /* it has one: the kernel refuses, and what it has claimed stays */
		return ALLOW;
	if (is_granted_to_user(context, ends) && ends->local_port)
		return ALLOW;
	agreement = agreement_of(sock);
	if (agreement.kind == AGREEMENT_EXCUSED)
		return ALLOW;
	if (agreement.kind != AGREEMENT_POOL || (ends->protocol != IPPROTO_TCP && ends->protocol != IPPROTO_UDP))
		return refuse_socket(REASON_BIND_REFUSED, ends, 0);
	if (!ends->local_port && wants_port_late(sock))
		return ALLOW; /* the port may be shared, which the kernel alone would not know either before */
	desk = take_desk();
	if (!desk)
		return refuse_socket(REASON_INTERNAL, ends, EADDRNOTAVAIL);
	reason = bind_to(context, sock, agreement.pool, ends, &desk->search);
	leave_desk(desk);
	return reason ? refuse_socket(reason, ends, EADDRNOTAVAIL) : ALLOW;
}
