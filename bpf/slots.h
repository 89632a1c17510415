/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who owns (address, port)? Two flat steps, address -> table and port >> shift -> owner: the same prefix
 * lookup an LPM trie would do, at a cost that hardly grows with the number of slices, because little memory is read.
 * What is known of a slice of this server beyond its owner, its deadline, is in `slots`. */
#pragma once

#include "maps.h"

enum place {
	PLACE_NOT_OURS = 0, /* no announced block covers the address: never touched */
	PLACE_NOBODY,       /* in a block, but no live lease */
	PLACE_HERE,
	PLACE_EXPIRED,      /* this server's, but its deadline has passed */
	PLACE_ELSEWHERE,    /* the owner says where */
};

/* Does an announced block cover the address? */
INLINE int in_block(ip_address address)
{
	struct block_key key = {.prefix_length = ADDRESS_BITS, .address = address};

	return bpf_map_lookup_elem(&blocks, &key) != 0;
}

#if FAMILY == 4

/* The line of `groups` that a group belongs in; four neighbours share it. As in kernel/address_places.py. */
INLINE __u32 hash_group(__u32 group)
{
	group = (group >> 2) * 0x9e3779b1u;
	group ^= group >> 15;
	group *= 0x846ca68bu;
	return group ^ group >> 16;
}

/* The entry of a group, as one word, or 0. */
INLINE __u64 group_of(const struct settings *self, __u32 number)
{
	__u32 line = hash_group(number), at;
	struct group_line *found;

#pragma clang loop unroll(disable)
	for (int tries = 0; tries < GROUP_TRIES; tries++, line++) {
		at = line & self->group_mask;
		found = bpf_map_lookup_elem(&groups, &at);
		if (!found)
			return 0;
#pragma clang loop unroll(full)
		for (int i = 0; i < LINE_GROUPS; i++) {
			__u64 group = *(volatile __u64 *)&found->groups[i]; /* in one load, as it is written */

			if ((__u32)group == number)
				return group;
		}
		if (!found->overflowed)
			return 0;
	}
	return 0;
}

/* Where the slots of an address are (address_line.where), or 0 when it has none. */
INLINE __u32 where_of(const struct settings *self, ip_address address)
{
	__u64 group = group_of(self, GROUP_BIT | be32(address) / LINE_ADDRESSES);
	struct address_line *found;
	__u32 line = group >> 32;

	if (!group)
		return 0;
	found = bpf_map_lookup_elem(&addresses, &line);
	return found ? found->where[be32(address) % LINE_ADDRESSES] : 0;
}

#else

INLINE __u32 where_of(const struct settings *self, ip_address address)
{
	__u32 *where = bpf_map_lookup_elem(&addresses, &address);

	return where ? *where : 0;
}

#endif

/* Has the address slices, or is it in a block? */
INLINE int is_ours(ip_address address)
{
	__u32 first = 0;
	struct settings *self = bpf_map_lookup_elem(&settings, &first);

	return (self && where_of(self, address)) || in_block(address);
}

INLINE int has_slices(ip_address address)
{
	__u32 first = 0;
	struct settings *self = bpf_map_lookup_elem(&settings, &first);

	return self && where_of(self, address);
}

/* `port` in network byte order. */
INLINE enum place place_of(ip_address address, __u16 port, __u32 *owner)
{
	struct owner_line *owners_of_line;
	struct settings *self;
	struct slot *slot;
	__u32 where, index, line, first = 0;

	self = bpf_map_lookup_elem(&settings, &first);
	where = self ? where_of(self, address) : 0;
	if (!where)
		return in_block(address) ? PLACE_NOBODY : PLACE_NOT_OURS;
	index = (where >> 5) + (be16(port) >> (where & 31));
	line = index / LINE_OWNERS;
	owners_of_line = bpf_map_lookup_elem(&owners, &line);
	*owner = owners_of_line ? owners_of_line->owners[index % LINE_OWNERS] : 0;
	if (!*owner)
		return PLACE_NOBODY;
	if (*owner != self->self)
		return PLACE_ELSEWHERE;
	slot = bpf_map_lookup_elem(&slots, &index);
	return slot && bpf_ktime_get_coarse_ns() < slot->deadline_ns ? PLACE_HERE : PLACE_EXPIRED;
}
