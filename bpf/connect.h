/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A program connects a socket (TCP or UDP), cgroup/connect at the root of cgroup2.
 *
 *   in no agreement, excused, loopback    -> untouched; but a resolver on loopback may be one of the pool's: dns.h
 *   not bound                             -> a free address and port of the agreement's pool is claimed, and bound
 *   bound to a shared address             -> exactly that tuple is claimed; without a port, a free one of that address
 *   bound to anything else                -> untouched here: it is translated at the uplink
 *
 * What cannot be is refused as the kernel would (EADDRNOTAVAIL). The port is chosen here and not by the kernel, which
 * knows neither slices nor the flows that are forwarded. */
#pragma once

#include "dns.h"
#include "inside.h"
#include "socket.h"

struct wide_address { /* struct sockaddr_in6, or in its first 16 bytes struct sockaddr_in */
	__u16 family;
	__u16 port; /* be */
	__u32 info; /* the IPv4 address, or the flow label */
	__u32 address[4];
	__u32 scope;
};

#define AF_INET 2
#define AF_INET6 10

struct inet_timewait_sock {
	unsigned char tw_substate;
} __attribute__((preserve_access_index));

struct tcp_timewait_sock {
	struct inet_timewait_sock tw_sk;
	int tw_ts_recent_stamp;
} __attribute__((preserve_access_index));

/* Has this socket's conversation ended? The kernel keeps what the peer has not ended yet in the same small form, and
 * would let another begin there: in the face of the peer, to whom it is alive. */
INLINE int is_over(struct bpf_sock *sock, struct tcp_timewait_sock **ended)
{
	*ended = bpf_skc_to_tcp_timewait_sock(sock);
	return *ended && (*ended)->tw_sk.tw_substate == STATE_TIME_WAIT;
}

/* Would the kernel begin anew where a conversation has just ended? It does when that one had timestamps: what is left of
 * it in the network is recognised by them. */
INLINE int can_follow(void *context, const struct claim_key *key)
{
	struct bpf_sock *sock = tcp_socket_of(context, key);
	struct tcp_timewait_sock *ended;
	int can;

	if (!sock)
		return 1;
	can = is_over(sock, &ended) && ended->tw_ts_recent_stamp;
	bpf_sk_release(sock);
	return can;
}

/* Binds the socket to the port that was claimed. Another socket may be bound there that is not connected: then the
 * next port is tried. */
INLINE int bind_here(struct searching *searching)
{
	struct bpf_sock_addr *context = searching->context;
	struct search *search = searching->search;
	struct wide_address address = {.port = search->key.local_port};
	int wide = context->family == AF_INET6, bytes = wide ? sizeof(address) : 16;
	long error;

	if (search->early && search->key.protocol == IPPROTO_TCP && !can_follow(context, &search->key))
		return 0;
	address.family = wide ? AF_INET6 : AF_INET;
#if FAMILY == 4
	if (wide) {
		address.address[2] = be32(0xffff);
		address.address[3] = search->key.local;
	} else {
		address.info = search->key.local;
	}
#else
	copy(address.address, &search->key.local, sizeof(search->key.local));
#endif
	error = bpf_bind(context, (void *)&address, bytes);
	if (error && error != -EADDRINUSE)
		search->full = search->unbound = 1; /* the same everywhere: ends the search */
	return !error;
}

/* Is another socket in the way of one that is bound? Its port is its own, so a listener there is no obstacle, nor is a
 * conversation that has ended: the kernel says whether it may be followed. */
INLINE int tcp_is_taken(void *context, const struct claim_key *key)
{
	struct bpf_sock *other = tcp_socket_of(context, key);
	struct tcp_timewait_sock *ended;
	int taken;

	if (!other)
		return 0;
	taken = other->state != STATE_LISTEN && !is_over(other, &ended);
	bpf_sk_release(other);
	return taken;
}

INLINE ip_address peer_of(const struct bpf_sock *sock)
{
#if FAMILY == 4
	return sock->dst_ip4;
#else
	ip_address peer;

	for (int i = 0; i < 4; i++)
		peer.words[i] = sock->dst_ip6[i];
	return peer;
#endif
}

/* Likewise. The socket itself is what is found, while it is not connected, or asks for the same once more. */
INLINE int udp_is_taken(void *context, const struct bpf_sock *sock, const struct claim_key *key)
{
	struct bpf_sock *other = udp_socket_of(context, key);
	int taken;

	if (!other)
		return 0;
	taken = other->dst_port && !(sock->dst_port == key->remote_port && same_address(peer_of(sock), key->remote));
	bpf_sk_release(other);
	return taken;
}

/* Claims exactly the tuple that a bound socket asks for. */
INLINE int claim_bound(struct bpf_sock_addr *context, struct bpf_sock *sock, struct search *search,
		       const struct ends *ends)
{
	search->early = 1; /* there is no other port to prefer */
	search->key.local = ends->local;
	search->key.local_port = ends->local_port;
	if (!insert_claim(search))
		return is_own(search) ? REASON_NONE : search->full ? REASON_TABLE_FULL : REASON_SOCKET_TAKEN;
	if (ends->protocol == IPPROTO_TCP ? tcp_is_taken(context, &search->key) :
					    udp_is_taken(context, sock, &search->key)) {
		give_back(search);
		return REASON_SOCKET_TAKEN;
	}
	return REASON_NONE;
}

/* Chooses where an unbound socket leaves from, and binds it. */
INLINE int claim_free(struct bpf_sock_addr *context, struct search *search, const struct pool *pool,
		      const struct ends *ends)
{
	int yes = 1, reason;

	bpf_setsockopt(context, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)); /* or one port served one destination */
	if (is_unspecified(ends->local)) {
		search->first_slice = bpf_get_prandom_u32();
		if (has_addresses(pool))
			search->address = paired_address(&search->claim.flow, pool, search->claim.pool, search->now_ns);
		reason = find_port(context, search, pool, 1);
	} else {
		reason = find_port_at(context, search, pool, ends, 1);
	}
	return search->unbound ? REASON_NO_ADDRESS : reason;
}

INLINE int same_peer(const struct claim_key *one, const struct claim_key *other)
{
	return same_address(one->remote, other->remote) && one->remote_port == other->remote_port;
}

/* What the socket had claimed towards whom it was connected to before, if anybody, is free. */
INLINE void free_former(const struct bpf_sock *sock, const struct search *search)
{
	struct claim_key former = search->key;

	former.remote = peer_of(sock);
	former.remote_port = sock->dst_port;
	if (former.remote_port && !same_peer(&former, &search->key))
		free_own(cookie_of(search), &former, 0);
}

INLINE void remember_recent(const struct search *search)
{
	struct recent *recent = recent_of(cookie_of(search));

	if (!recent)
		return;
	recent->key = search->key;
	recent->cookie = cookie_of(search);
}

INLINE int leave_from(struct bpf_sock_addr *context, struct bpf_sock *sock, __u32 pool_key, struct ends *ends,
		      struct search *search)
{
	struct pool *pool = bpf_map_lookup_elem(&pools, &pool_key);
	struct chosen *chosen;
	int reason, whole, lasts;

	if (!pool)
		return why_no_pool(pool_key);
	if (ends->local_port && !in_pool(pool, pool_key, ends))
		return REASON_BIND_OUTSIDE;
	whole = !ends->local_port && maps_independently(pool, ends->protocol);
	lasts = whole || sock->bound_dev_if;
	/* Most have none: what they claimed is told by their two ends, and over soon. */
	chosen = lasts || has_storage(sock) ? bpf_sk_storage_get(&chosen_of, sock, 0, lasts ? BPF_SK_STORAGE_GET_F_CREATE : 0) : 0;
	if (lasts && !chosen)
		return REASON_INTERNAL;
	begin_search(context, search, pool, pool_key, ends, whole, lasts);
	reason = ends->local_port ? claim_bound(context, sock, search, ends) : claim_free(context, search, pool, ends);
	if (reason)
		return reason;
	if (ends->local_port)
		free_former(sock, search);
	else
		count(TRAFFIC_SOCKETS);
	if (chosen && (!chosen->held.local_port || chosen->held.remote_port)) /* not the whole port: that is kept */
		hold_claim(chosen, search, lasts);
	if (!chosen)
		remember_recent(search);
	if (search->reused)
		count(TRAFFIC_REUSED);
	return REASON_NONE;
}

/* Need its agreement not be remembered? Until a socket that gets its port here has sent something (of UDP, the uplink remembers
 * then), the cgroup of the program that made it answers, unless that is another one. Of TCP only the SYN is asked for it. Many
 * a UDP socket is connected only to see which address it would leave from. */
INLINE int knows_itself(struct bpf_sock *sock, const struct ends *ends, const struct agreement *agreement)
{
	return !sock->src_port && is_unspecified(ends->local) && cgroup_of(sock) == bpf_get_current_cgroup_id() &&
	       (ends->protocol == IPPROTO_TCP || agreement->kind == AGREEMENT_POOL);
}

/* `wide`: the address is one of IPv6, or written like one. */
INLINE int connect(struct bpf_sock_addr *context, struct ends *ends, const int wide)
{
	struct bpf_sock *sock = context->sk;
	struct agreement agreement;
	struct desk *desk;
	int reason, told;

	if (!sock || (ends->protocol != IPPROTO_TCP && ends->protocol != IPPROTO_UDP) || is_multicast(ends->remote) ||
	    is_link_local(ends->remote))
		return ALLOW;
	if (is_loopback(ends->remote)) {
		reason = ask_pool(context, ends, 0, wide);
		if (reason)
			return reason == LEFT_ALONE ? ALLOW : refuse_socket(reason, ends, EADDRNOTAVAIL);
	}
	switch (whose(context)) {
	case WHOSE_OTHERS:
		return ALLOW;
	case WHOSE_ELSEWHERE:
		agreement = agreement_of_task();
		return agreement.kind == AGREEMENT_POOL ? refuse_socket(REASON_NAMESPACE, ends, 0) : ALLOW;
	default:
		agreement = agreement_here(sock, ends->local, &told);
	}
	if (agreement.kind == AGREEMENT_NONE)
		return ALLOW;
	if (!told && !knows_itself(sock, ends, &agreement))
		remember_agreement(sock, &agreement);
	if (agreement.kind != AGREEMENT_POOL)
		return ALLOW;
	ends->local_port = be16(sock->src_port);
	if (is_unspecified(ends->local) ? ends->local_port : !is_ours(ends->local))
		return ALLOW;
	desk = take_desk();
	if (!desk)
		return refuse_socket(REASON_INTERNAL, ends, EADDRNOTAVAIL);
	reason = leave_from(context, sock, agreement.pool, ends, &desk->search);
	leave_desk(desk);
	return reason ? refuse_socket(reason, ends, EADDRNOTAVAIL) : ALLOW;
}
