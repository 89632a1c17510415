// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The claims behind what users were granted (granted.h), towards all: made, prolonged and ended by the agent, in the
 * kernel, because only here can a claim change hands while packets ask for it (claim.h). One step for each run. Such a
 * claim is of no on-ramp, and its client is itself. Nothing of the scratch space is used: a packet may come between. */
#include "granted.h"

/* Nobody searches here. */
INLINE int settle(struct searching *searching)
{
	return 1;
}

INLINE void owner_of(const struct granting *granting, struct flow_key *owner)
{
	owner->client = granting->key.local;
	owner->client_port = granting->key.local_port;
	owner->protocol = granting->key.protocol;
}

INLINE int take(const struct granting *granting, struct flow_key *owner, __u64 now)
{
	struct search search = {.key = granting->key, .now_ns = now, .until_ns = granting->until_ns};

	search.claim.expires_ns = granting->until_ns;
	search.claim.flow = *owner;
	search.claim.pool = granting->pool;
	search.claim.since_ticks = now / TICK_NS;
	return insert_claim(&search);
}

/* Frees the claim, if it is still this one. */
INLINE int end(const struct granting *granting, const struct flow_key *owner)
{
	struct claim_key key = granting->key;
	struct claim *claim = bpf_map_lookup_elem(&claims, &key);
	__u64 expires;

	if (!claim)
		return 0;
	expires = *(volatile __u64 *)&claim->expires_ns;
	if (expires == CLAIM_BUSY || !same_flow(&claim->flow, owner) ||
	    __sync_val_compare_and_swap(&claim->expires_ns, expires, CLAIM_BUSY) != expires)
		return 0;
	bpf_map_delete_elem(&claims, &key);
	return 1;
}

SEC("syscall")
int HOOK(grant)(struct granting *context)
{
	struct granting granting = *context;
	struct flow_key owner = {};
	__u64 now = bpf_ktime_get_ns();
	struct claim *claim;

	owner_of(&granting, &owner);
	switch (granting.step) {
	case GRANT_TAKE:
		context->done = take(&granting, &owner, now);
		break;
	case GRANT_EXTEND:
		claim = bpf_map_lookup_elem(&claims, &granting.key);
		context->done = claim && extend(claim, &owner, now, granting.until_ns);
		break;
	case GRANT_END:
		context->done = end(&granting, &owner);
	}
	return 0;
}
LICENSE;
