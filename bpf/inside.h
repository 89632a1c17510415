/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What struct bpf_sock, or the hook, does not show of a socket: read from the kernel's own struct. Only fields that the
 * kernel has had for many versions; their places are looked up when the program is loaded (CO-RE). */
#pragma once

#include "netns.h"

struct kernfs_node {
	__u64 id;
} __attribute__((preserve_access_index));

struct cgroup;

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
} __attribute__((preserve_access_index));

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
} __attribute__((preserve_access_index));

struct sock_cgroup_data {
	struct cgroup *cgroup;
} __attribute__((preserve_access_index));

struct sock {
	struct sock_common __sk_common;
	struct sock_cgroup_data sk_cgrp_data;
	unsigned long sk_lingertime;
} __attribute__((preserve_access_index));

struct inet_sock {
	unsigned long inet_flags; /* 6.6 */
} __attribute__((preserve_access_index));

struct tcp_sock {
	__u32 rcv_nxt;
	__u32 copied_seq;
} __attribute__((preserve_access_index));

#define SOCK_LINGER 4 /* of enum sock_flags */
#define INET_FLAGS_BIND_ADDRESS_NO_PORT 18

INLINE const struct sock *inside(const void *sock)
{
	return bpf_rdonly_cast(sock, kernel_type(struct sock));
}

/* Of the program that made it. */
INLINE __u64 cgroup_of(const void *sock)
{
	return inside(sock)->sk_cgrp_data.cgroup->kn->id;
}

/* Did its program set IP_BIND_ADDRESS_NO_PORT, so that a port is found when it connects? */
INLINE int wants_port_late(const void *sock)
{
	const struct inet_sock *at = bpf_rdonly_cast(sock, kernel_type(struct inet_sock));

	return at->inet_flags >> INET_FLAGS_BIND_ADDRESS_NO_PORT & 1;
}

INLINE __u64 inner_cookie_of(const void *sock)
{
	return inside(sock)->__sk_common.skc_cookie.counter;
}

/* The claim of a connected socket, by its ends. */
INLINE void key_inside(const struct bpf_sock *sock, struct claim_key *key)
{
	const struct sock *at = inside(sock);

	zero_fill(key, sizeof(*key));
#if FAMILY == 4
	key->local = at->__sk_common.skc_rcv_saddr;
	key->remote = at->__sk_common.skc_daddr;
#else
	key->local = at->__sk_common.skc_v6_rcv_saddr;
	key->remote = at->__sk_common.skc_v6_daddr;
#endif
	key->local_port = be16(at->__sk_common.skc_num);
	key->remote_port = at->__sk_common.skc_dport;
	key->protocol = sock->protocol;
}

/* Will the kernel end the connection with a RST, because its program asked for that, or has not read everything? */
INLINE int closes_abruptly(const struct bpf_sock *sock)
{
	const struct sock *at = inside(sock);
	const struct tcp_sock *tcp = bpf_rdonly_cast(sock, kernel_type(struct tcp_sock));

	if (at->__sk_common.skc_state == STATE_SYN_SENT || at->__sk_common.skc_state == STATE_CLOSE)
		return 0;
	return (at->__sk_common.skc_flags >> SOCK_LINGER & 1 && !at->sk_lingertime) || tcp->rcv_nxt != tcp->copied_seq;
}
