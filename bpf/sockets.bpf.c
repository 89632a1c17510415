// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Sockets of this host (socket.h says what for): programs connect (connect.h), bind (bind.h) and close them. Attached at the
 * root of cgroup2, for every program of the host.
 *
 * An IPv6 socket can have the addresses of IPv4, written as "mapped" ones: these are a matter of IPv4's tables, so there are
 * two programs for what is asked of such a socket, and each lets pass what is the other's. */
#include "bind.h"
#include "connect.h"
#include "inside.h"

#define OTHER_ADDRESS_BYTES (4 + 16 - sizeof(ip_address))
#define offsetof(type, field) __builtin_offsetof(type, field)

/* A port that is free is claimed. To connect, the socket is bound to it here; to bind it, the kernel does when the
 * program has said yes, and not where a conversation has just ended: anybody may be the next to be connected. */
INLINE int settle(struct searching *searching)
{
	return searching->connects ? bind_here(searching) : !searching->search->early;
}

/* The pools of the other family, only to see which there are. */
#undef pools
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 256);
	__type(key, __u32);
	__uint(value_size, offsetof(struct pool, slices) +
				   POOL_SLICES_MAX * (sizeof(struct pool_slice) - sizeof(ip_address) + OTHER_ADDRESS_BYTES));
}
#if FAMILY == 4
pools6 SEC(".maps");
#define other_pools pools6
#else
pools SEC(".maps");
#define other_pools pools
#endif

INLINE int why_no_pool(__u32 pool_key)
{
	return bpf_map_lookup_elem(&other_pools, &pool_key) ? REASON_FAMILY : REASON_NO_POOL;
}

#if FAMILY == 4

SEC("cgroup/connect4")
int socket_connect(struct bpf_sock_addr *context)
{
	struct ends ends = {.remote = context->user_ip4, .remote_port = context->user_port, .protocol = context->protocol};

	if (context->sk)
		ends.local = context->sk->src_ip4;
	return connect(context, &ends, 0);
}

/* IPv4 by a socket of IPv6. */
SEC("cgroup/connect6")
int connect_mapped(struct bpf_sock_addr *context)
{
	struct ends ends = {.remote = context->user_ip6[3], .remote_port = context->user_port, .protocol = context->protocol};

	if (context->user_ip6[0] || context->user_ip6[1] || context->user_ip6[2] != be32(0xffff))
		return ALLOW;
	if (context->sk)
		ends.local = context->sk->src_ip4;
	return connect(context, &ends, 1);
}

SEC("cgroup/bind4")
int socket_bind(struct bpf_sock_addr *context)
{
	struct ends ends = {.local = context->user_ip4, .local_port = context->user_port, .protocol = context->protocol};

	return bind(context, &ends);
}

/* An address of IPv4 for a socket of IPv6. */
SEC("cgroup/bind6")
int bind_mapped(struct bpf_sock_addr *context)
{
	struct ends ends = {.local = context->user_ip6[3], .local_port = context->user_port, .protocol = context->protocol};

	if (context->user_ip6[0] || context->user_ip6[1] || context->user_ip6[2] != be32(0xffff))
		return ALLOW;
	return bind(context, &ends);
}

#else

SEC("cgroup/connect6")
int socket_connect6(struct bpf_sock_addr *context)
{
	struct ends ends = {.remote_port = context->user_port, .protocol = context->protocol};
	struct bpf_sock *sock = context->sk;

	for (int i = 0; i < 4; i++) {
		ends.remote.words[i] = context->user_ip6[i];
		ends.local.words[i] = sock ? sock->src_ip6[i] : 0;
	}
	return is_mapped(ends.remote) ? ALLOW : connect(context, &ends, 1);
}

SEC("cgroup/bind6")
int socket_bind6(struct bpf_sock_addr *context)
{
	struct ends ends = {.local_port = context->user_port, .protocol = context->protocol};

	for (int i = 0; i < 4; i++)
		ends.local.words[i] = context->user_ip6[i];
	return is_mapped(ends.local) ? ALLOW : bind(context, &ends);
}

#endif

/* Sockets of IPv6 can have claims of either. */
INLINE int is_of_family(const struct bpf_sock *sock)
{
	return FAMILY == 4 || sock->family == AF_INET6;
}

#define ABRUPT_NS 20000000 /* a few ticks of the clock */

/* Keeps the tuple for a moment: the kernel takes the socket out of its table before it sends the RST, and the SYN of the
 * next one could be faster. */
INLINE void keep_briefly(__u64 cookie, struct claim_key *key)
{
	struct claim fresh = {.acknowledged = cookie, .sent = cookie >> 32};

	fresh.expires_ns = bpf_ktime_get_coarse_ns() + ABRUPT_NS;
	if (bpf_map_update_elem(&claims, key, &fresh, BPF_NOEXIST))
		free_own(cookie, key, fresh.expires_ns);
}

/* Its connect() failed, if there was one. The claim says whether it is this socket's. */
INLINE void forget_recent(__u64 cookie)
{
	struct recent *recent = cookie ? recent_of(cookie) : 0;
	struct claim_key key;

	if (!recent || recent->cookie != cookie)
		return;
	key = recent->key;
	free_own(cookie, &key, 0);
}

/* What a closed socket has claimed is free at once. The kernel's own table shows the tuple for as long as the conversation
 * takes to end; where others cannot rely on that, the claim stays for that time. */
SEC("cgroup/sock_release")
int HOOK(socket_release)(struct bpf_sock *sock)
{
	struct chosen *chosen;
	struct claim_key key;

	if (sock->protocol != IPPROTO_TCP && sock->protocol != IPPROTO_UDP)
		return ALLOW;
	chosen = has_storage(sock) ? bpf_sk_storage_get(&chosen_of, sock, 0, 0) : 0;
	if (chosen) {
		if (chosen->held.local_port)
			free_own(inner_cookie_of(sock), &chosen->held,
				 chosen->closing_ns ? bpf_ktime_get_coarse_ns() + chosen->closing_ns : 0);
		return ALLOW;
	}
	if (!is_of_family(sock) || whose(sock) != WHOSE_OURS)
		return ALLOW;
	if (!sock->dst_port) {
		forget_recent(inner_cookie_of(sock));
		return ALLOW;
	}
	key_inside(sock, &key);
	if (!has_slices(key.local)) /* most sockets are none of ours */
		return ALLOW;
	if (sock->protocol == IPPROTO_TCP && closes_abruptly(sock))
		keep_briefly(inner_cookie_of(sock), &key);
	else
		free_own(inner_cookie_of(sock), &key, 0);
	return ALLOW;
}

LICENSE;
