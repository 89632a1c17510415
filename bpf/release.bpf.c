// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* A socket is closed, cgroup/sock_release at the root of cgroup2: what it has claimed is free at once. The kernel's own
 * table shows the tuple for as long as the conversation takes to end; where others cannot rely on that, the claim stays for
 * that time. */
#include "socket.h"

INLINE int settle(struct searching *searching)
{
	return 1;
}

SEC("cgroup/sock_release")
int HOOK(socket_release)(struct bpf_sock *sock)
{
	struct chosen *chosen = bpf_sk_storage_get(&chosen_of, sock, 0, 0);
	__u64 later = 0;

	if (!chosen || !chosen->held.local_port)
		return ALLOW;
	if (chosen->held.protocol == IPPROTO_TCP && lasts(&chosen->search))
		later = bpf_ktime_get_coarse_ns() + chosen->search.closing_ns;
	free_own(chosen, &chosen->held, later);
	return ALLOW;
}

LICENSE;
