/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Lookups of programs in an agreement. A resolver on loopback is another process, and asks from an address that is none of
 * the pool's. So where a pool has resolvers of its own (the setting `dns`), a socket that addresses port 53 on loopback talks
 * to one of those: connect and sendmsg exchange the address, and go on as for any other. What libraries look at, the source of
 * an answer and the peer, is what they asked for (dns.bpf.c).
 *
 *   no `dns` for the pool                           -> untouched
 *   none of this family, or bound to loopback       -> refused: it would ask from elsewhere, or not be answered
 *   else                                            -> the pool's next one, so that whoever asks again asks another
 *
 * Libraries may repeat a question where they asked first. So a resolver that owes an answer for long is passed over while
 * another one does not, and tried now and then. An answer to a program that does not look where it is from is not seen
 * here; so when all owe, it is by turn alone.
 *
 * A socket that asks two resolvers on loopback without connecting to them may be told the one it asked last, where the
 * same one of the pool answers for both; and one that asks that one by its own address, too, is told of loopback. */
#pragma once

#include "agreement.h"
#include "asked.h"
#include "socket.h"

#define LEFT_ALONE -1 /* no reason: not ours to change */

#define PATIENCE_NS 1000000000ULL
#define TRY_AGAIN_NS 30000000000ULL

/* The place of the resolver whose turn it is. */
INLINE __u32 next_resolver(struct pool_dns *dns, __u8 protocol)
{
	__u32 turn = __sync_fetch_and_add(&dns->turn, 1), at;
	__u64 now = bpf_ktime_get_coarse_ns(), since;

	for (__u32 tries = 0; tries < RESOLVERS_MAX; tries++) {
		at = (turn + tries) % dns->resolver_count & (RESOLVERS_MAX - 1);
		since = dns->owes_since_ns[at];
		if (since && now >= since + TRY_AGAIN_NS)
			dns->owes_since_ns[at] = now - PATIENCE_NS; /* it is this one lookup that tries */
		else if (since && now >= since + PATIENCE_NS)
			continue;
		if (!since && protocol == IPPROTO_UDP) /* nobody is told of answers by TCP */
			dns->owes_since_ns[at] = now;
		return at;
	}
	return turn % dns->resolver_count & (RESOLVERS_MAX - 1);
}

/* Whom a connected socket asks that says nevertheless to whom it sends: it hears of nobody else. 0: it is not connected. */
INLINE const ip_address *connected_to(const struct bpf_sock *sock, const struct asked *asked, const struct ends *ends)
{
	__u32 at = asked->connected - 1;

	if (!sock->dst_port || at >= RESOLVERS_MAX || !same_address(asked->of[at].loopback, ends->remote))
		return 0;
	return &asked->of[at].resolver;
}

/* A lookup on loopback: makes `ends` those of one with a resolver of the pool's. Apart, because most who connect to
 * loopback want something else. */
APART int choose_resolver(struct bpf_sock_addr *context, struct ends *ends, int sends)
{
	struct bpf_sock *sock = context->sk;
	struct agreement agreement;
	struct pool_dns *dns;
	const ip_address *before;
	struct asked *asked;
	__u32 at;
	int told;

	if (!sock || whose(context) != WHOSE_OURS)
		return LEFT_ALONE;
	agreement = agreement_now(sock, &told);
	dns = agreement.kind == AGREEMENT_POOL ? bpf_map_lookup_elem(&resolvers, &agreement.pool) : 0;
	if (!dns)
		return LEFT_ALONE;
	if (!dns->resolver_count || (!is_unspecified(ends->local) && is_loopback(ends->local)))
		return REASON_NO_RESOLVER;
	asked = bpf_sk_storage_get(&asked_of, sock, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!asked)
		return REASON_INTERNAL;
	before = sends ? connected_to(sock, asked, ends) : 0;
	if (before) {
		ends->remote = *before;
		return REASON_NONE;
	}
	at = next_resolver(dns, ends->protocol);
	asked->pool = agreement.pool;
	if (!sends)
		asked->connected = at + 1;
	asked->of[at].resolver = dns->addresses[at];
	asked->of[at].loopback = ends->remote;
	ends->remote = dns->addresses[at];
	return REASON_NONE;
}

/* The socket addresses loopback, to connect or (`sends`) to send. Is that a lookup, and a matter of its pool's resolvers?
 * LEFT_ALONE, why it is refused, or REASON_NONE: it goes to one of them. `wide`: as in connect.h. */
INLINE int ask_pool(struct bpf_sock_addr *context, struct ends *ends, const int sends, const int wide)
{
	struct ends asked;
	int reason;

	if (likely(ends->remote_port != DNS_PORT))
		return LEFT_ALONE;
	asked = *ends; /* a copy, so that the compiler may keep that of everybody else in registers */
	reason = choose_resolver(context, &asked, sends);
	if (reason)
		return reason;
	ends->remote = asked.remote;
#if FAMILY == 4
	if (wide)
		context->user_ip6[3] = ends->remote;
	else
		context->user_ip4 = ends->remote;
#else
	for (int i = 0; i < 4; i++)
		context->user_ip6[i] = ends->remote.words[i];
#endif
	return REASON_NONE;
}
