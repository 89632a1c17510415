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

/* One drop more, of which all is said but what it was. 0: nowhere to say it. */
INLINE struct drop *dropped(enum reason reason, enum hook hook, __u32 interface, __u64 now)
{
	__u32 key = reason;
	struct drop *drop = bpf_map_lookup_elem(&drops, &key);

	if (!drop)
		return 0;
	drop->packets += 1;
	drop->last.at_ns = now;
	drop->last.interface = interface;
	drop->last.hook = hook;
	drop->last.family = FAMILY;
	return drop;
}

INLINE void count_drop_at(enum reason reason, enum hook hook, __u32 interface, const struct packet *packet, __u64 now)
{
	struct drop *drop = dropped(reason, hook, interface, now);

	if (!drop)
		return;
	copy(drop->last.source, &packet->source, sizeof(packet->source));
	copy(drop->last.destination, &packet->destination, sizeof(packet->destination));
	drop->last.source_port = packet->source_port;
	drop->last.destination_port = packet->destination_port;
	drop->last.protocol = packet->protocol;
}

INLINE void count_drop(enum reason reason, enum hook hook, __u32 interface, const struct packet *packet)
{
	count_drop_at(reason, hook, interface, packet, bpf_ktime_get_coarse_ns());
}
