/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What concerns one link alone: nobody forwards it, and it may be the host's (DHCP, neighbour discovery). It is left
 * to the host, except where the clients of the on-ramp are listed and it is none of them who speaks. */
#pragma once

#include "parse.h"
#include "source.h"

INLINE int stays_on_link(const struct packet *packet)
{
	return is_multicast(packet->destination) || is_link_local(packet->destination) ||
	       is_link_local(packet->source) || is_discovery(packet);
}

/* The header that wrap put in front has no addresses. */
INLINE int is_bare(const struct __sk_buff *skb)
{
	const struct ethhdr *ethernet = (void *)(long)skb->data;
	__u8 seen = 0;

	if ((void *)(ethernet + 1) > (void *)(long)skb->data_end)
		return 0;
	for (int i = 0; i < ETH_ALEN; i++)
		seen |= ethernet->h_source[i] | ethernet->h_dest[i];
	return !seen;
}

/* Neighbours must find each other, whatever their addresses: IPv6 does it with packets like others. Without Ethernet
 * there are none to be found: there it could only be meant to make the host believe something (a router, a prefix). */
ALONE int may_speak_on_link(struct __sk_buff *skb, const struct packet *packet, const struct onramp *onramp)
{
	if (!packet)
		return 0;
	if (is_discovery(packet) || is_link_local(packet->source) || is_unspecified(packet->source))
		return !onramp || !onramp->source_count || !is_bare(skb);
	return is_client(onramp, &packet->source);
}
