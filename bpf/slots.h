/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who owns (address, port)? Two flat steps, address -> table and port >> shift -> slot: the same prefix
 * lookup an LPM trie would do, at a cost that does not grow with the number of slices. */
#pragma once

#include "maps.h"

enum place {
	PLACE_NOT_OURS = 0, /* no announced block covers the address: never touched */
	PLACE_NOBODY,       /* in a block, but no live lease */
	PLACE_HERE,
	PLACE_EXPIRED,      /* this server's, but its deadline has passed */
	PLACE_ELSEWHERE,    /* slot->owner says where */
};

/* Does an announced block cover the address? */
INLINE int in_block(ip_address address)
{
	struct block_key key = {.prefix_length = ADDRESS_BITS, .address = address};

	return bpf_map_lookup_elem(&blocks, &key) != 0;
}

/* `port` in network byte order. */
INLINE enum place place_of(ip_address address, __u16 port, struct slot **found)
{
	struct address_key key = {.address = address};
	struct address *table = bpf_map_lookup_elem(&addresses, &key);
	struct settings *self;
	struct slot *slot;
	__u32 index, first = 0;

	if (!table)
		return in_block(address) ? PLACE_NOBODY : PLACE_NOT_OURS;
	index = table->base + (be16(port) >> (table->shift & 31));
	slot = bpf_map_lookup_elem(&slots, &index);
	self = bpf_map_lookup_elem(&settings, &first);
	if (!slot || !self || !slot->owner)
		return PLACE_NOBODY;
	*found = slot;
	if (slot->owner != self->self)
		return PLACE_ELSEWHERE;
	return bpf_ktime_get_coarse_ns() < slot->deadline_ns ? PLACE_HERE : PLACE_EXPIRED;
}
