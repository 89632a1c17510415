/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How full a pool is: what an operator is warned about before clients are refused.
 *
 * A port serves many destinations, so neither flows nor ports in use say how near a pool is to refusing somebody. It
 * refuses when all its ports are taken towards one destination; so what is counted is the flows of the pool towards its
 * busiest destination (protocol, address and port; for endpoint-independent mappings all destinations are one). Each
 * sweep counts anew, in two rows of counters that destinations are hashed to: the smaller of a destination's two
 * counters is never too small, and too large only by what shares both. */
#pragma once

#include "pairing.h"

#define USAGE_COLUMNS 65536 /* a power of two; of each row */

INLINE __u32 destination_hash(const struct claim_key *key, __u32 pool)
{
	return mixed(address_number(key->remote) ^ mixed(pool ^ (__u32)key->remote_port << 16 ^ (__u32)key->protocol << 8));
}

/* Adds one in a row; returns the counter. */
INLINE __u32 count_up(__u32 at, __u32 run)
{
	struct usage_cell *cell = bpf_map_lookup_elem(&usage_cells, &at);

	if (!cell)
		return 0;
	if (cell->run != run) {
		cell->run = run;
		cell->flows = 0;
	}
	return ++cell->flows;
}

/* Counts a live claim. `run` numbers the sweeps. */
INLINE void count_usage(const struct claim_key *key, __u32 pool, __u64 now, __u32 run)
{
	__u32 hash = destination_hash(key, pool), one, other;
	struct usage *usage = bpf_map_lookup_elem(&usages, &pool);

	if (!usage) {
		struct usage fresh = {.at_ns = now};

		bpf_map_update_elem(&usages, &pool, &fresh, BPF_NOEXIST);
		usage = bpf_map_lookup_elem(&usages, &pool);
	}
	if (!usage)
		return;
	if (usage->at_ns != now) {
		usage->at_ns = now;
		usage->flows = usage->busiest = 0;
	}
	one = count_up(hash & (USAGE_COLUMNS - 1), run);
	other = count_up(USAGE_COLUMNS + (mixed(hash) & (USAGE_COLUMNS - 1)), run);
	one = one < other ? one : other;
	usage->flows++;
	if (one > usage->busiest) {
		usage->busiest = one;
		usage->destination = *key;
	}
}
