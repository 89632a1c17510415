/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* One client, one address (RFC 4787 REQ-2, RFC 7857 section 4): services that see one user behind two addresses log
 * them out. A client keeps the address that its entry has while it has an entry and the pool has a slice of that
 * address; otherwise each address is drawn a number with the client, and the highest wins, so that addresses that
 * come or go move only the clients of those. */
#pragma once

#include "client.h"

struct choice {
	__u64 now_ns;
	__u32 pool;
	__u32 client;     /* a number for it */
	__u32 remembered; /* number of its address, 0: none */
	__u32 address;    /* of the one to be; 0: the pool has no live slice */
	__u32 weight;
	__u32 zero;
};

/* Finalizer of MurmurHash3, as published: every bit depends on every bit. */
INLINE __u32 mixed(__u32 value)
{
	value = (value ^ value >> 16) * 0x85ebca6bu;
	value = (value ^ value >> 13) * 0xc2b2ae35u;
	return value ^ value >> 16;
}

static long weigh(__u32 index, struct choice *choice)
{
	struct pool *pool = bpf_map_lookup_elem(&pools, &choice->pool);
	struct pool_slice *slice;
	struct slot *slot;
	__u32 weight, address;

	if (!pool || index >= POOL_SLICES_MAX)
		return 1;
	slice = &pool->slices[index];
	slot = bpf_map_lookup_elem(&slots, &slice->slot);
	if (!slot || slot->deadline_ns <= choice->now_ns)
		return 0;
	address = address_number(slice->address);
	weight = mixed(choice->client ^ mixed(address));
	if (!choice->address || weight > choice->weight || address == choice->remembered) {
		choice->weight = weight;
		choice->address = address;
	}
	return address == choice->remembered;
}

/* Are there addresses to choose from? Slices are in order. */
INLINE int has_addresses(const struct pool *pool)
{
	__u32 last = pool->slice_count - 1;

	return last < POOL_SLICES_MAX && !same_address(pool->slices[0].address, pool->slices[last].address);
}

/* The number of the address that the client of `key` is to leave from, as long as it has room. */
ALONE __u32 paired_address(const struct flow_key *key, const struct pool *pool, __u32 pool_key, __u64 now)
{
	struct choice choice = {.now_ns = now, .pool = pool_key};
	struct client *client;

	if (!key || !pool)
		return 0;
	client = client_of(key);
	choice.client = address_number(subscriber(key->client)) ^ mixed(key->onramp);
	choice.remembered = client ? client->address : 0;
	bpf_loop(pool->slice_count, weigh, &choice, 0);
	if (client && client->address != choice.address)
		client->address = choice.address;
	return choice.address;
}
