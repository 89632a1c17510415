// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Frees expired claims and their flows, so that memory follows use, and counts the others (usage.h). Run by the agent
 * from time to time. Correctness does not depend on it: an expired claim is also taken over by the next flow that wants
 * it, and a packet that finds no room makes some (room.h). Fragments that have waited too long are counted as lost
 * here, unless another has taken their place before. */
#include "hold.h"
#include "room.h"
#include "usage.h"

static long sweep_claim(void *map, struct claim_key *key, struct claim *claim, struct sweep *sweep)
{
	struct claim_key live = *key;

	if (!free_claim(key, claim, sweep))
		count_usage(&live, claim->pool, sweep->now_ns, sweep->run);
	return 0;
}

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

SEC("syscall")
int HOOK(sweep)(struct sweep *context)
{
	struct sweep sweep = {.now_ns = bpf_ktime_get_ns()};
	__u32 first = 0;
	struct sweeping *sweeping = bpf_map_lookup_elem(&sweeps, &first);

	if (!sweeping)
		return 0;
	sweep.run = ++sweeping->runs;
	bpf_for_each_map_elem(&claims, sweep_claim, &sweep, 0);
	bpf_for_each_map_elem(&clients, free_client, &sweep, 0);
	bpf_for_each_map_elem(&held, sweep_held, &sweep, 0);
	swept(sweeping, sweep.now_ns);
	*context = sweep;
	return 0;
}
LICENSE;
