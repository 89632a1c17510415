// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Empties the tables that packets made, alive or not, so that a round of new flows starts where the last did. */
#include "maps.h"

static long forget_flow(void *map, struct flow_key *key, struct flow *flow, void *context)
{
	struct flow_key gone = *key;

	bpf_map_delete_elem(&flows, &gone);
	return 0;
}

static long forget_claim(void *map, struct claim_key *key, struct claim *claim, void *context)
{
	struct claim_key gone = *key;

	bpf_map_delete_elem(&claims, &gone);
	return 0;
}

static long forget_exhausted(void *map, struct exhausted_key *key, struct exhausted *value, void *context)
{
	struct exhausted_key gone = *key;

	bpf_map_delete_elem(&exhausted, &gone);
	return 0;
}

SEC("syscall")
int flush(void *context)
{
	bpf_for_each_map_elem(&flows, forget_flow, 0, 0);
	bpf_for_each_map_elem(&claims, forget_claim, 0, 0);
	bpf_for_each_map_elem(&exhausted, forget_exhausted, 0, 0);
	return 0;
}

LICENSE;
