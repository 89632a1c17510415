/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What users of this host were granted: to bind sockets of their own to one address and port of a slice, or to one
 * address and whatever port. The agent writes it, for a bounded time; the bind hook asks. A port that is granted is
 * claimed towards all, so that no flow and no other socket gets it (grant.bpf.c). */
#pragma once

#include "agreement.h"
#include "family.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct grant_key);
	__type(value, struct grant);
} granted SEC(".maps");

#define SOL_SOCKET_LEVEL 1
#define SO_REUSEADDR_OPTION 2

/* For the bind hook: may this program's user bind to that end (port be, 0: any)? Then the socket is in an agreement
 * with the pool of the grant from here on, and can have other connections of the same port beside it. */
INLINE int grant_for(struct bpf_sock_addr *context, ip_address address, __u16 port)
{
	struct grant_key key = {.port = port, .protocol = context->protocol, .family = FAMILY};
	struct agreement agreement = {.kind = AGREEMENT_POOL};
	struct agreement *known;
	struct grant *grant;
	int yes = 1;

	key.uid = (__u32)bpf_get_current_uid_gid();
	copy(key.address, &address, sizeof(address));
	grant = bpf_map_lookup_elem(&granted, &key);
	if (!grant || grant->deadline_ns <= bpf_ktime_get_ns())
		return 0;
	agreement.pool = grant->pool;
	known = bpf_sk_storage_get(&agreed, context->sk, &agreement, BPF_SK_STORAGE_GET_F_CREATE);
	if (!known)
		return 0;
	*known = agreement;
	bpf_setsockopt(context, SOL_SOCKET_LEVEL, SO_REUSEADDR_OPTION, &yes, sizeof(yes));
	return 1;
}
