/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Destinations for which an on-ramp does not translate (RFC 6888 REQ-6): such packets are left to the host, as if
 * this program were not there. Asked only for packets of no flow, so it costs established ones nothing; and a
 * conversation that was there before its destination was exempted goes on as it began. A client that sends from a
 * shared address is not exempt: the guard could not tell its packets from ours. */
#pragma once

#include "parse.h"
#include "slots.h"

INLINE int is_exempt(__u32 interface, const struct packet *packet)
{
	struct exempt_key key = {
		.prefix_length = 32 + ADDRESS_BITS, .onramp = interface, .address = packet->destination};

	return bpf_map_lookup_elem(&exempt, &key) && !in_block(packet->source);
}
