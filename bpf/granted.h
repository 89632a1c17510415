/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What users of this host were granted: to bind sockets of their own to one address and port of a slice, or to one
 * address and whatever port. The agent writes it, for a bounded time; the bind hook asks. A port that is granted is
 * claimed towards all, so that no flow and no other socket gets it (grant.bpf.c). */
#pragma once

#include "socket.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct grant_key);
	__type(value, struct grant);
} granted SEC(".maps");

/* May this program's user bind to that local end (no port: any)? Then the socket is in an agreement with the pool of the
 * grant from here on. Of TCP, it can have connections of other sockets at the same port beside it; of UDP, two sockets
 * that are not connected would hide each other. */
INLINE int is_granted_to_user(struct bpf_sock_addr *context, const struct ends *ends)
{
	struct grant_key key = {.port = ends->local_port, .protocol = ends->protocol, .family = FAMILY};
	struct agreement agreement = {.kind = AGREEMENT_POOL}, *known;
	struct grant *grant;
	int yes = 1;

	key.uid = (__u32)bpf_get_current_uid_gid();
	copy(key.address, &ends->local, sizeof(ends->local));
	grant = bpf_map_lookup_elem(&granted, &key);
	if (!grant || grant->deadline_ns <= bpf_ktime_get_coarse_ns())
		return 0;
	agreement.pool = grant->pool;
	known = bpf_sk_storage_get(&agreed, context->sk, &agreement, BPF_SK_STORAGE_GET_F_CREATE);
	if (!known)
		return 0;
	*known = agreement;
	if (ends->protocol == IPPROTO_TCP)
		bpf_setsockopt(context, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
	return 1;
}
