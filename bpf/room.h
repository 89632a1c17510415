/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Freeing the memory of what is over. The agent sweeps the tables every few seconds (sweep.bpf.c). While there is no
 * agent, the packet that would be refused for lack of room sweeps: the first claims that are found to have expired
 * are freed, and it is tried once more.
 *
 * Looking at a whole table of live claims takes long (about 0.2 us for each), and nothing else happens on that CPU
 * meanwhile. So it is done only while no agent does it, by one CPU at a time, and after a look at everything by nobody for
 * fifty times as long as it took. While there is an agent a packet looks at a few claims only. */
#pragma once

#include "claim.h"
#include "scratch.h"

#define ROOM_FREED_MAX 4096                     /* claims freed by one packet: a millisecond */
#define ROOM_LIVE_MAX 8192                      /* live ones looked at while there is an agent: likewise */
#define ROOM_SHARE 50                           /* of the time, one part may be spent on looking */
#define ROOM_AGAIN_NS NS_PER_SECOND             /* at least between two looks that found too little */
#define ROOM_AGENT_NS (15 * NS_PER_SECOND)      /* the agent sweeps more often than this */

/* Frees the claim if it is over. Returns whether it was. */
INLINE int free_claim(struct claim_key *key, struct claim *claim, struct sweep *sweep)
{
	struct claim_key dead = *key;
	struct flow_key former;
	__u64 expires = *(volatile __u64 *)&claim->expires_ns;

	if (expires > sweep->now_ns) { /* also CLAIM_BUSY */
		sweep->live++;
		return 0;
	}
	if (expires + rest_ns(&dead, claim) > sweep->now_ns ||
	    __sync_val_compare_and_swap(&claim->expires_ns, expires, CLAIM_BUSY) != expires)
		return 1;
	drop_flow_of(&dead, claim, &former);
	bpf_map_delete_elem(&claims, &dead);
	sweep->freed++;
	return 1;
}

static long free_claims(void *map, struct claim_key *key, struct claim *claim, struct sweep *sweep)
{
	free_claim(key, claim, sweep);
	return sweep->freed >= sweep->freed_max || sweep->live >= sweep->live_max; /* enough ends the walk */
}

/* A client that has nothing any more and whose rate has recovered. */
static long free_client(void *map, struct client_key *key, struct client *client, struct sweep *sweep)
{
	struct client_key idle = *key;

	if (client->next_ns < sweep->now_ns && !client->claims &&
	    !__sync_val_compare_and_swap(&client->claims, 0, CLIENT_GONE))
		bpf_map_delete_elem(&clients, &idle);
	return 0;
}

/* After a look at everything that began at `now`: when may the next one be? */
INLINE void swept(struct sweeping *sweeping, __u64 now)
{
	__u64 took = bpf_ktime_get_ns() - now;

	sweeping->swept_ns = now;
	sweeping->again_ns = now + (took * ROOM_SHARE > ROOM_AGAIN_NS ? took * ROOM_SHARE : ROOM_AGAIN_NS);
}

/* The flow of `trial` is refused for `reason`. True: something was freed, it is worth another try. */
ALONE int make_room(enum reason reason, struct trial *trial)
{
	__u64 now = bpf_ktime_get_ns(), before;
	struct sweep sweep = {.now_ns = now, .freed_max = ROOM_FREED_MAX, .live_max = ~0ULL};
	struct sweeping *sweeping;
	__u32 first = 0;
	int agent;

	if (!trial || (reason != REASON_TABLE_FULL && reason != REASON_CLIENT_TABLE && reason != REASON_CLIENT_FLOWS &&
	    reason != REASON_CLIENT_STATE))
		return 0;
	zero_fill(&trial->search, sizeof(trial->search));
	sweeping = bpf_map_lookup_elem(&sweeps, &first);
	if (!sweeping)
		return 0;
	/* Zeros that the verifier does not know, or it would count along; 64 bits, which cannot grow. */
	sweep.freed = *(volatile __u64 *)&sweeping->zero;
	sweep.live = *(volatile __u64 *)&sweeping->zero;
	agent = sweeping->swept_ns && sweeping->swept_ns + ROOM_AGENT_NS > now;
	if (reason != REASON_TABLE_FULL) { /* what this client had may be anywhere */
		if (agent)
			return 0;
		sweep.freed_max = ~0ULL;
	} else if (agent) {
		sweep.live_max = ROOM_LIVE_MAX;
	}
	before = *(volatile __u64 *)&sweeping->again_ns;
	if (before > now || __sync_val_compare_and_swap(&sweeping->again_ns, before, now + ROOM_AGAIN_NS) != before)
		return 0;
	bpf_for_each_map_elem(&claims, free_claims, &sweep, 0);
	if (sweep.freed >= sweep.freed_max) {
		sweeping->again_ns = now; /* there is more where this came from */
		return 1;
	}
	if (sweep.live >= sweep.live_max)
		return sweep.freed != 0;
	bpf_for_each_map_elem(&clients, free_client, &sweep, 0);
	swept(sweeping, now);
	return sweep.freed || reason == REASON_CLIENT_TABLE;
}
