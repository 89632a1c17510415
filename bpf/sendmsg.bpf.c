// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* A program sends a datagram from a UDP socket that is not connected, cgroup/sendmsg at the root of cgroup2.
 *
 * The packet gets its port at the uplink (uplink.bpf.c), when it is too late to tell the program that there is none: UDP
 * hears of nothing that is dropped on the way. So it is asked here whether the pool could serve, and the call fails
 * with EPERM when it could not. The port that is found is given back: only the uplink knows the packet's source address.
 *
 *   in no agreement, excused, loopback         -> untouched; but a resolver on loopback may be one of the pool's: dns.h
 *   bound to a shared address                  -> goes through, unless a conversation of another leaves from there, or
 *                                                 the port is none of the pool's: the kernel's own choice
 *   to where the socket has a flow             -> goes through, while that is alive
 *   to anywhere else                           -> goes through if there is a free port towards it */
#include "dns.h"
#include "sender.h"
#include "socket.h"

INLINE int settle(struct searching *searching)
{
	return 1;
}

/* Is there a flow, and will the uplink believe it still? It decides as `refresh` (flow.h). */
INLINE int goes_on(const struct flow_key *key, __u64 now)
{
	struct flow *flow = bpf_map_lookup_elem(&flows, key);
	struct claim_key claim_key = {
		.remote = key->remote, .remote_port = key->remote_port, .protocol = key->protocol};
	struct claim *claim;
	__u32 owner;

	if (!flow)
		return 0;
	if (flow->refresh_ns > now)
		return 1;
	claim_key.local = flow->local;
	claim_key.local_port = flow->local_port;
	claim = bpf_map_lookup_elem(&claims, &claim_key);
	return claim && alive(claim, now) && same_flow(&claim->flow, key) &&
	       place_of(flow->local, flow->local_port, &owner) == PLACE_HERE;
}

/* Has the socket sent there before, or from a port that is its own towards everybody? */
INLINE int has_flow(const struct pool *pool, struct flow_key *key)
{
	__u64 now = bpf_ktime_get_coarse_ns();

	if (goes_on(key, now))
		return 1;
	if (!maps_independently(pool, key->protocol))
		return 0;
	key->remote = UNSPECIFIED;
	key->remote_port = 0;
	return goes_on(key, now);
}

/* May the host have one flow more, by the limits of a client? */
INLINE int within_limits(const struct pool *pool, const struct flow_key *key)
{
	__u32 counted = 0;
	int reason = client_takes(pool, key, bpf_ktime_get_coarse_ns(), 0, &counted);

	if (counted)
		client_returns(key, 0);
	return reason;
}

/* Why could the pool not serve? REASON_NONE: it could. */
INLINE int servable(struct bpf_sock_addr *context, struct bpf_sock *sock, __u32 pool_key, struct ends *ends)
{
	struct sender *sender = bpf_sk_storage_get(&senders, sock, 0, 0);
	struct pool *pool = bpf_map_lookup_elem(&pools, &pool_key);
	__u32 first = 0;
	struct settings *self = bpf_map_lookup_elem(&settings, &first);
	struct flow_key key = {.remote = ends->remote,
			       .client_port = ends->local_port,
			       .remote_port = ends->remote_port,
			       .protocol = ends->protocol};
	struct desk *desk;
	int reason;

	if (!pool || !self)
		return REASON_FAMILY;
	key.onramp = self->uplink;
	key.client = is_unspecified(ends->local) && sender ? sender->from : ends->local;
	if (!is_unspecified(key.client)) { /* else it has not sent anything yet */
		if (has_flow(pool, &key))
			return REASON_NONE;
		reason = within_limits(pool, &key);
		if (reason)
			return reason;
	}
	desk = take_desk();
	if (!desk)
		return REASON_INTERNAL;
	begin_search(context, &desk->search, pool, pool_key, ends, maps_independently(pool, ends->protocol), 0);
	reason = find_port(context, &desk->search, pool, 0);
	if (!reason)
		give_back(&desk->search);
	leave_desk(desk);
	return reason;
}

/* Is the claim a client's? */
INLINE int is_forwarded(const struct claim_key *key)
{
	struct claim *claim = bpf_map_lookup_elem(&claims, key);

	return claim && claim->flow.onramp && alive(claim, bpf_ktime_get_coarse_ns());
}

/* Why may the socket not send from the shared address that it has? A port of ours is its own towards everybody, since it
 * was bound; but not towards those to whom a client talked from there before, for as long as that lasts, or another
 * socket does. One that it got from the kernel, because it wanted one late and never connected, is none of ours, or
 * perhaps a client's. */
INLINE int why_not_from(struct bpf_sock_addr *context, struct bpf_sock *sock, __u32 pool_key, const struct ends *ends)
{
	struct claim_key key = {.local = ends->local,
				.remote = ends->remote,
				.local_port = ends->local_port,
				.remote_port = ends->remote_port,
				.protocol = ends->protocol};
	struct claim_key towards_all = {
		.local = ends->local, .local_port = ends->local_port, .protocol = ends->protocol};
	struct pool *pool = bpf_map_lookup_elem(&pools, &pool_key);
	struct bpf_sock *other;
	int taken;

	if (!pool || !in_pool(pool, pool_key, ends))
		return REASON_BIND_OUTSIDE;
	if (is_forwarded(&key) || is_forwarded(&towards_all))
		return REASON_SOCKET_TAKEN;
	other = sock->dst_port ? 0 : udp_socket_of(context, &key);
	if (!other)
		return REASON_NONE;
	taken = other->dst_port != 0;
	bpf_sk_release(other);
	return taken ? REASON_SOCKET_TAKEN : REASON_NONE;
}

INLINE int send(struct bpf_sock_addr *context, struct ends *ends)
{
	struct bpf_sock *sock = context->sk;
	struct agreement agreement;
	int reason, told;

	if (!sock || ends->protocol != IPPROTO_UDP || is_multicast(ends->remote) || is_link_local(ends->remote))
		return ALLOW;
	if (is_loopback(ends->remote)) {
		reason = ask_pool(context, ends, 1, FAMILY == 6);
		if (reason)
			return reason == LEFT_ALONE ? ALLOW : refuse_socket(reason, ends, 0);
	}
	switch (whose(context)) {
	case WHOSE_OTHERS:
		return ALLOW;
	case WHOSE_ELSEWHERE:
		agreement = agreement_of_task();
		return agreement.kind == AGREEMENT_POOL ? refuse_socket(REASON_NAMESPACE, ends, 0) : ALLOW;
	default:
		agreement = agreement_here(sock, ends->local, &told);
		if (!told && agreement.kind)
			remember_agreement(sock, &agreement);
	}
	if (agreement.kind != AGREEMENT_POOL)
		return ALLOW;
	ends->local_port = be16(sock->src_port);
	if (!is_unspecified(ends->local) && is_ours(ends->local))
		reason = why_not_from(context, sock, agreement.pool, ends);
	else
		reason = servable(context, sock, agreement.pool, ends);
	return reason ? refuse_socket(reason, ends, 0) : ALLOW;
}

#if FAMILY == 4

/* Also for IPv4 by a socket of IPv6. */
SEC("cgroup/sendmsg4")
int socket_send(struct bpf_sock_addr *context)
{
	struct ends ends = {.local = context->msg_src_ip4,
			    .remote = context->user_ip4,
			    .remote_port = context->user_port,
			    .protocol = context->protocol};

	return send(context, &ends);
}

#else

SEC("cgroup/sendmsg6")
int socket_send6(struct bpf_sock_addr *context)
{
	struct ends ends = {.remote_port = context->user_port, .protocol = context->protocol};

	for (int i = 0; i < 4; i++) {
		ends.remote.words[i] = context->user_ip6[i];
		ends.local.words[i] = context->msg_src_ip6[i];
	}
	return is_mapped(ends.remote) ? ALLOW : send(context, &ends);
}

#endif

LICENSE;
