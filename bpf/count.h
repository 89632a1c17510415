/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Counters. Per CPU, so that counting never contends; the last packet of each reason is kept beside its
 * count, so that an operator can name what was dropped even while no agent runs. */
#pragma once

#include "maps.h"
#include "parse.h"

INLINE void count(enum traffic what)
{
	__u32 key = what;
	__u64 *packets = bpf_map_lookup_elem(&traffic, &key);

	if (packets)
		*packets += 1;
}

/* One more, of which all but the ports is said. Returns where it was counted, or 0. */
INLINE struct drop *count_drop_of(enum reason reason, enum hook hook, __u32 interface, const ip_address *source,
				  const ip_address *destination, __u8 protocol, __u64 now)
{
	__u32 key = reason;
	struct drop *drop = bpf_map_lookup_elem(&drops, &key);

	if (!drop)
		return 0;
	drop->packets += 1;
	drop->last.at_ns = now;
	copy(drop->last.source, source, sizeof(*source));
	copy(drop->last.destination, destination, sizeof(*destination));
	drop->last.source_port = drop->last.destination_port = 0;
	drop->last.interface = interface;
	drop->last.protocol = protocol;
	drop->last.hook = hook;
	drop->last.family = FAMILY;
	return drop;
}

INLINE void count_drop_at(enum reason reason, enum hook hook, __u32 interface, const struct packet *packet, __u64 now)
{
	struct drop *drop = count_drop_of(reason, hook, interface, &packet->source, &packet->destination,
					  packet->protocol, now);

	if (!drop)
		return;
	drop->last.source_port = packet->source_port;
	drop->last.destination_port = packet->destination_port;
}

INLINE void count_drop(enum reason reason, enum hook hook, __u32 interface, const struct packet *packet)
{
	count_drop_at(reason, hook, interface, packet, bpf_ktime_get_coarse_ns());
}
