/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Whose packet leaves this host: the agreement that its socket is in, and what is remembered of the socket.
 *
 * Asked of every packet of every socket of the host, so it is cheap where there is nothing to find: a socket that was
 * put into an agreement itself carries it, and while no cgroup is in one, none is looked at. */
#pragma once

#include "agreement.h"

#define CGROUP_LEVELS_MAX 32 /* deeper ones are in the agreement of those above */
#define SOCK_STREAM 1 /* struct bpf_sock.type */
#define SOCK_RAW 3

struct bpf_map;
extern __s64 bpf_map_sum_elem_count(const struct bpf_map *map) __attribute__((section(".ksyms")));

struct sender { /* of a socket in an agreement */
	ip_address from; /* the source of the last packet that could begin a conversation: its own address */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct sender);
} senders SEC(".maps");

/* The agreement of the packet's socket `sock`: its own, or that of the nearest cgroup above it. 0: none. */
INLINE const struct agreement *agreement_of_sender(struct __sk_buff *skb, struct bpf_sock *sock)
{
	struct agreement *found = bpf_sk_storage_get(&agreed, sock, 0, 0), *nearest = 0;
	__u64 cgroup;

	if (found)
		return found;
	if (!bpf_map_sum_elem_count((const struct bpf_map *)&agreements))
		return 0;
	for (int level = 0; level < CGROUP_LEVELS_MAX; level++) {
		cgroup = bpf_skb_ancestor_cgroup_id(skb, level);
		if (!cgroup)
			break;
		found = bpf_map_lookup_elem(&agreements, &cgroup);
		if (found)
			nearest = found;
	}
	return nearest;
}
