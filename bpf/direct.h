/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Return routing: whose is a packet that came in by the uplink? One answer for both attachments (director.bpf.c
 * in XDP, director_tc.bpf.c at tc), which differ only in how a packet is dropped and sent on.
 *
 * A packet to a soft-unicast address may arrive at any server. The owner of (address, port) is read from
 * the slot table and nothing else: no per-connection state, so every server gives the same answer.
 *
 *   not in an announced block  -> untouched
 *   this server's slice        -> up, to egress and the kernel stack
 *   a neighbour's slice        -> new destination MAC, hop limit down by one, back out of the uplink
 *   a remote server's slice    -> into a tunnel, hop limit down by one (encapsulate.h)
 *   nobody's, expired          -> dropped with a reason
 *   a fragment                 -> to the server where those of its datagram meet, then to the owner (fragment.h)
 */
#pragma once

#include "checksum.h"
#include "count.h"
#include "fragment.h"
#include "quote.h"
#include "slots.h"

enum direction {
	DIRECTION_NOT_OURS,
	DIRECTION_HERE,
	DIRECTION_ELSEWHERE, /* `owner` says which server */
	DIRECTION_NOWHERE,   /* packet->reason says why */
};

/* All of one datagram meet at one server, whose egress_in sends them on to the owner. */
INLINE enum direction direct_fragment(void *data, void *end, struct packet *packet, __u32 *owner)
{
	struct ethhdr *eth = data;

	switch (meeting_of(packet, owner)) {
	case PLACE_NOT_OURS:
		return DIRECTION_NOT_OURS;
	case PLACE_NOBODY:
		packet->reason = REASON_NO_OWNER;
		return DIRECTION_NOWHERE;
	case PLACE_ELSEWHERE:
		if ((void *)(eth + 1) > end)
			return DIRECTION_NOT_OURS;
		if (!has_met(eth, *owner))
			return DIRECTION_ELSEWHERE;
	default:
		return DIRECTION_HERE;
	}
}

/* `parsed`: what parse() made of the frame. */
INLINE enum direction direct(void *data, void *end, int parsed, struct packet *packet, __u32 *owner)
{
	__u16 port = packet->destination_port;

	if (parsed == PARSED_OTHER || is_discovery(packet))
		return DIRECTION_NOT_OURS;
	if (unlikely(parsed == PARSED_FRAGMENT))
		return direct_fragment(data, end, packet, owner);
	if (parsed == PARSED_ERROR) {
		struct quote quote;

		/* To the owner of what it quotes; only an error that came back to where the packet left from can be true. */
		if (parse_quote(data, end, packet, &quote) || !same_address(quote.source, packet->destination))
			parsed = refuse(packet, REASON_ICMP_ERROR);
		port = quote.source_port;
	}
	if (parsed == PARSED_DROP) /* for us? then say why; if not, hands off */
		return is_ours(packet->destination) ? DIRECTION_NOWHERE : DIRECTION_NOT_OURS;
	switch (place_of(packet->destination, port, owner)) {
	case PLACE_NOT_OURS:
		return DIRECTION_NOT_OURS;
	case PLACE_HERE:
		return DIRECTION_HERE;
	case PLACE_ELSEWHERE:
		return DIRECTION_ELSEWHERE;
	case PLACE_EXPIRED:
		packet->reason = REASON_LEASE_EXPIRED;
		return DIRECTION_NOWHERE;
	default:
		packet->reason = REASON_NO_OWNER;
		return DIRECTION_NOWHERE;
	}
}

/* Makes the frame one for the neighbour. Returns 0, or the reason why it cannot be sent on. */
INLINE enum reason aim(void *data, void *end, const struct server *server, const struct packet *packet)
{
	struct ethhdr *eth = data;
	ip_header *ip = (void *)(eth + 1);

	if (!server || server->kind != SERVER_NEIGHBOUR)
		return REASON_NO_NEIGHBOUR;
	if (packet->ttl <= 1) /* two servers whose tables disagree would send it to and fro for ever */
		return REASON_STEER_LOOP;
	if ((void *)(ip + 1) > end)
		return REASON_INTERNAL;
	decrease_ttl(ip);
	copy(eth->h_source, eth->h_dest, ETH_ALEN);
	copy(eth->h_dest, server->mac, ETH_ALEN);
	count(TRAFFIC_STEERED);
	return REASON_NONE;
}
