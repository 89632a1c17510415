// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Frees expired claims and their flows, so that memory follows use. Run by the agent from time to time.
 * Correctness does not depend on it: an expired claim is also taken over by the next flow that wants it. Fragments
 * that have waited too long are counted as lost here, unless another has taken their place before. */
#include "claim.h"
#include "hold.h"

static long sweep_claim(void *map, struct claim_key *key, struct claim *claim, struct sweep *sweep)
{
	struct claim_key dead = *key;
	struct flow_key former;
	__u64 expires = *(volatile __u64 *)&claim->expires_ns;

	if (expires > sweep->now_ns) { /* also CLAIM_BUSY */
		sweep->live++;
		return 0;
	}
	if (expires + rest_ns(&dead, claim) > sweep->now_ns)
		return 0;
	if (__sync_val_compare_and_swap(&claim->expires_ns, expires, CLAIM_BUSY) != expires)
		return 0;
	drop_flow_of(&dead, claim, &former);
	bpf_map_delete_elem(&claims, &dead);
	sweep->freed++;
	return 0;
}

static long sweep_client(void *map, struct client_key *key, struct client *client, struct sweep *sweep)
{
	struct client_key idle = *key;

	if (!client->flows && client->next_ns < sweep->now_ns)
		bpf_map_delete_elem(&clients, &idle);
	return 0;
}

#if FAMILY == 4

static long sweep_held(void *map, __u32 *at, struct held *place, struct sweep *sweep)
{
	__u32 state = *(volatile __u32 *)&place->state;

	if (state == HELD_FREE || state == HELD_BUSY || place->at_ns + FRAGMENT_NS > sweep->now_ns ||
	    __sync_val_compare_and_swap(&place->state, state, HELD_BUSY) != state)
		return 0;
	count_lost(&place->key, sweep->now_ns);
	__sync_lock_test_and_set(&place->state, HELD_FREE);
	return 0;
}

#endif

SEC("syscall")
int HOOK(sweep)(struct sweep *context)
{
	struct sweep sweep = {.now_ns = bpf_ktime_get_ns()};

	bpf_for_each_map_elem(&claims, sweep_claim, &sweep, 0);
	bpf_for_each_map_elem(&clients, sweep_client, &sweep, 0);
#if FAMILY == 4
	bpf_for_each_map_elem(&held, sweep_held, &sweep, 0);
#endif
	*context = sweep;
	return 0;
}
LICENSE;
