/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who the clients of an on-ramp are. Asked when a conversation begins or asks its claim, and of what goes to the
 * host; not for each packet of a known flow, because a flow is there only if its first packet was let in. */
#pragma once

#include "maps.h"

/* May this source address come in by the on-ramp? Any may where no prefixes are listed. The address that errors to
 * clients come from is the server's own, and nobody else's. */
ALONE int is_client(const struct onramp *onramp, const ip_address *source)
{
	if (!onramp || !source || !onramp->source_count)
		return 1;
	if (same_address(*source, onramp->address))
		return 0;
	for (__u32 i = 0; i < ONRAMP_SOURCES_MAX && i < onramp->source_count; i++)
		if (in_prefix(*source, onramp->sources[i].address, onramp->sources[i].mask))
			return 1;
	return 0;
}
