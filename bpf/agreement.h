/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which sockets of this host leave from a pool. A socket is in an agreement when its program is in a cgroup that is,
 * or below one; or when the agent put it in one itself (a socket that a program handed to it). User space writes both
 * maps; they are of both families.
 *
 * Which one a socket is in is found out when its program uses it first, and kept for as long as it lives: a
 * conversation does not change sides when its program moves to another cgroup, or a descriptor to another program. */
#pragma once

#include "abi.h"
#include "bpf.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, __u64); /* number of the cgroup: its inode */
	__type(value, struct agreement);
} agreements SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct agreement);
} agreed SEC(".maps");

struct sock___stored { /* the kernel's struct sock; it goes by the name before the underlines */
	void *sk_bpf_storage;
} __attribute__((preserve_access_index));

/* Is anything stored with the socket, by whatever program? Most have nothing, and to ask is cheaper than to look for it. */
INLINE int has_storage(const void *sock)
{
	const struct sock___stored *at = bpf_rdonly_cast(sock, kernel_type(struct sock___stored));

	return at->sk_bpf_storage != 0;
}

#define OUTSIDERS 4096

/* Cgroups that are in no agreement, nor below one: most of a host, and to find that out takes a question for each one above.
 * User space changes the tag, the first entry, with each agreement that begins: what was found before is void then. While
 * it is at that, the tag is 0 and nothing is known. An entry is the cgroup's number ^ the tag, which is random: no two of both are
 * alike. One word, so that a reader sees it whole. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4097); /* 1 + OUTSIDERS */
	__type(key, __u32);
	__type(value, __u64);
} outsiders SEC(".maps");

/* Is it one of them? Leaves the tag, for when that is to be found out: it is read before anything else is. */
INLINE int is_outsider(__u64 cgroup, __u64 *tag)
{
	__u32 first = 0, at = 1 + cgroup % OUTSIDERS;
	volatile __u64 *now = bpf_map_lookup_elem(&outsiders, &first), *known = bpf_map_lookup_elem(&outsiders, &at);

	*tag = now ? *now : 0;
	return *tag && known && *known == (cgroup ^ *tag);
}

/* What is asked from here on, is read after what was asked before, on CPUs that would do otherwise, too. */
INLINE void in_order(void)
{
	__u64 nothing = 0;

	__sync_lock_test_and_set(&nothing, 1); /* a sum that nobody reads would order nothing */
}

INLINE void note_outsider(__u64 cgroup, __u64 tag)
{
	__u32 at = 1 + cgroup % OUTSIDERS;
	volatile __u64 *known = bpf_map_lookup_elem(&outsiders, &at);

	if (known && tag)
		*known = cgroup ^ tag;
}

#define CGROUP_DEPTH_MAX 32 /* deeper ones are not looked at */

/* The agreement of the task that runs: the innermost cgroup that has one decides. Most often that is its own. */
INLINE struct agreement agreement_of_task(void)
{
	struct agreement found = {}, *here;
	__u64 own = bpf_get_current_cgroup_id(), cgroup, tag;

	if (is_outsider(own, &tag))
		return found;
	here = bpf_map_lookup_elem(&agreements, &own);
	if (here)
		return *here;
	in_order();
#pragma clang loop unroll(disable)
	for (int level = 0; level < CGROUP_DEPTH_MAX; level++) {
		cgroup = bpf_get_current_ancestor_cgroup_id(level);
		if (!cgroup)
			break;
		here = bpf_map_lookup_elem(&agreements, &cgroup);
		if (here)
			found = *here;
	}
	if (!found.kind && bpf_get_current_cgroup_id() == own) /* else it was moved meanwhile */
		note_outsider(own, tag);
	return found;
}

/* The agreement of a socket that its program uses this moment. `told`: it is in `agreed`. */
INLINE struct agreement agreement_now(struct bpf_sock *sock, int *told)
{
	struct agreement *known = has_storage(sock) ? bpf_sk_storage_get(&agreed, sock, 0, 0) : 0;

	*told = known != 0;
	return known ? *known : agreement_of_task();
}

INLINE void remember_agreement(struct bpf_sock *sock, struct agreement *agreement)
{
	bpf_sk_storage_get(&agreed, sock, agreement, BPF_SK_STORAGE_GET_F_CREATE);
}

/* Likewise, and remembered. */
INLINE struct agreement agreement_of(struct bpf_sock *sock)
{
	int told;
	struct agreement found = agreement_now(sock, &told);

	if (!told && found.kind)
		remember_agreement(sock, &found);
	return found;
}

/* The agreement of the socket of this host that sent a packet, by the cgroup of the program that made the socket
 * where no program has told yet. AGREEMENT_NONE: of none, or the packet is nobody's here. */
INLINE struct agreement agreement_of_packet(struct __sk_buff *skb)
{
	struct bpf_sock *sock = skb->sk;
	struct agreement found = {}, *here;
	__u64 own, cgroup, tag;

	sock = sock ? bpf_sk_fullsock(sock) : 0;
	if (!sock)
		return found;
	here = has_storage(sock) ? bpf_sk_storage_get(&agreed, sock, 0, 0) : 0;
	if (here)
		return *here;
	own = bpf_skb_cgroup_id(skb);
	if (is_outsider(own, &tag))
		return found;
	here = bpf_map_lookup_elem(&agreements, &own);
	if (here)
		return *here;
	in_order();
#pragma clang loop unroll(disable)
	for (int level = 0; level < CGROUP_DEPTH_MAX; level++) {
		cgroup = bpf_skb_ancestor_cgroup_id(skb, level);
		if (!cgroup)
			break;
		here = bpf_map_lookup_elem(&agreements, &cgroup);
		if (here)
			found = *here;
	}
	if (!found.kind)
		note_outsider(own, tag);
	return found;
}
