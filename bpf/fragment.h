/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Fragments: which datagram one belongs to, and what is remembered of datagrams.
 *
 * Only the first fragment has ports. Its server remembers them by (source, destination, identification, protocol) and
 * gives them to the later ones, which then go the way of every other packet. Nothing is put together: the transport
 * checksum is in the first fragment and is changed along with what it covers, wherever that is.
 *
 * Servers share nothing about fragments. All of one datagram meet at the server that a hash of it names; that one
 * knows the owner as soon as the first has come. Fragments that come earlier wait (hold.h). All memory is bounded, and
 * the oldest makes room: a flood of fragments can make other fragments lose, and nothing else.
 */
#pragma once

#include "rewrite.h"
#include "slots.h"
#include "tunnel.h"

#define FRAGMENT_NS 30000000000ULL     /* how long a first fragment is remembered, and a later one waits (RFC 791) */
#define FRAGMENT_SAME_NS 1000000000ULL /* a first one seen again within this is of the same datagram */
#define SIDE_WIRE 0                    /* datagram_key.interface: arrived by the uplink, */
#define SIDE_GUARD (~0u)               /* or about to leave by it; else the on-ramp's */
#define MEETING_TRIES 32
#define MEETING_STEP 2048 /* ports: the default slice; all slices of an address are tried once */

INLINE int is_fragment(const struct packet *packet)
{
	return packet->fragment & (IP_MORE_FRAGMENTS | IP_OFFSET);
}

/* Has no ports of its own, and no transport header to change? */
INLINE int is_later(const struct packet *packet)
{
	return packet->fragment & IP_OFFSET;
}

INLINE void key_of(const struct packet *packet, __u32 side, struct datagram_key *key)
{
	key->source = packet->source;
	key->destination = packet->destination;
	key->interface = side;
	key->id = packet->id;
	key->protocol = packet->protocol;
	zero_fill(&key->zero, sizeof(key->zero));
}

INLINE __u32 mix(__u32 a, __u32 b)
{
	a = (a ^ b) * 0x9e3779b1u;
	return a ^ a >> 15;
}

/* A number for identification and protocol. */
INLINE __u32 id_number(const struct packet *packet)
{
#if FAMILY == 4
	return packet->id << 8 | packet->protocol;
#else
	return mix(be32(packet->id), packet->protocol);
#endif
}

/* Where all fragments of this datagram meet: the owner of the port that its hash names, or, when it has none, of the
 * next one in an order that the hash names, too, so that the servers share the work. A pure function of the slice table, like steering by port. Not found (an address with few small slices):
 * where it has arrived, which is the same server for all as long as routers spread fragments by address. */
INLINE enum place meeting_of(const struct packet *packet, __u32 *owner)
{
	__u32 hash = mix(mix(address_number(packet->source), address_number(packet->destination)),
			 id_number(packet));
	__u32 port = hash >> 16, step = (hash | 1) * MEETING_STEP, first = 0;
	struct settings *self;
	enum place place;

	for (int i = 0; i < MEETING_TRIES; i++, port += step) {
		place = place_of(packet->destination, be16((__u16)port), owner);
		if (place == PLACE_NOT_OURS || place == PLACE_HERE || place == PLACE_ELSEWHERE)
			return place;
	}
	self = bpf_map_lookup_elem(&settings, &first);
	return self && where_of(self, packet->destination) ? PLACE_HERE : PLACE_NOBODY;
}

/* Was the frame sent on by the server where its like meet? Or put back by this one itself (cut.h, hairpin), or come out
 * of a tunnel? Then this is where it belongs. */
INLINE int has_met(const struct ethhdr *eth, __u32 meeting)
{
	struct server *server = bpf_map_lookup_elem(&servers, &meeting);

	return (server && same_mac(eth->h_source, server->mac)) || same_mac(eth->h_source, eth->h_dest) ||
	       is_opened(eth);
}

/* Gives a later fragment the ports of its first one, and the identification that it leaves with. 0: not known. */
INLINE int recall(struct packet *packet, const struct datagram_key *key, __u64 now)
{
	struct datagram *datagram = bpf_map_lookup_elem(&datagrams, key);

	if (!datagram || !datagram->known || datagram->since_ns + FRAGMENT_NS <= now)
		return 0;
	packet->source_port = datagram->source_port;
	packet->destination_port = datagram->destination_port;
	packet->new_id = datagram->id;
	/* Was what we have read still this datagram's? The map may have given its place away meanwhile. */
	return bpf_map_lookup_elem(&datagrams, key) == datagram;
}

/* The entry of a datagram, made when there is none. */
INLINE struct datagram *entry_of(const struct datagram_key *key, __u64 now)
{
	struct datagram *datagram = bpf_map_lookup_elem(&datagrams, key);
	struct datagram fresh = {.since_ns = now};

	if (datagram)
		return datagram;
	bpf_map_update_elem(&datagrams, key, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(&datagrams, key);
}

INLINE __u32 next_number(__u32 of)
{
	__u32 *number = bpf_map_lookup_elem(&numbers, &of);
	__u32 next;

	if (!number)
		return 0;
	next = __sync_fetch_and_add(number, 1);
	if (next)
		return next;
	next = bpf_get_prandom_u32(); /* unused so far: nobody should know where it begins */
	*number = next + 1;
	return next;
}

/* An identification for a datagram from one of our ports. Servers that share an address must not use the same ones
 * towards one remote end, so a server takes them, like ports, out of its slice (RFC 7597 section 8.3.3), and there
 * one after the other (RFC 6864 section 5.3.1). */
INLINE ip_id new_id(ip_address local, __u16 local_port, ip_address remote, __u8 protocol)
{
	__u32 first = 0;
	struct settings *self = bpf_map_lookup_elem(&settings, &first);
	__u32 hash = mix(mix(address_number(local), address_number(remote)), protocol), mask;

	if (!self)
		return 0;
	mask = (1u << (where_of(self, local) & 31)) - 1;
	return id_of(be16(local_port) & ~mask, mask, next_number(NUMBER_ID + (hash >> 8) % ID_COUNTERS));
}

/* Remembers the ports of a first fragment; and, when it leaves from one of our ports, as what it leaves. */
INLINE int remember(struct packet *packet, const struct datagram_key *key, const ip_address *local, __u16 local_port,
		    __u64 now)
{
	struct datagram *datagram = entry_of(key, now);

	if (!datagram)
		return -1;
	if (!datagram->known || datagram->since_ns + FRAGMENT_SAME_NS <= now ||
	    datagram->source_port != packet->source_port || datagram->destination_port != packet->destination_port) {
		datagram->source_port = packet->source_port;
		datagram->destination_port = packet->destination_port;
		datagram->gone = datagram->total = 0;
		datagram->id = local ? new_id(*local, local_port, packet->destination, packet->protocol) : packet->id;
	}
	packet->new_id = datagram->id;
	datagram->since_ns = now;
	__sync_lock_test_and_set(&datagram->known, 1);
	return 0;
}

/* One more goes on its way. When all of a datagram have, it is forgotten: its sender may use the identification for
 * another, the later fragments of which must wait for that one's ports. */
ALONE int gone_on(const struct packet *packet, __u32 side)
{
	struct datagram *datagram;
	struct datagram_key key;
	__u32 gone;

	if (!packet)
		return 0;
	key_of(packet, side, &key);
	datagram = bpf_map_lookup_elem(&datagrams, &key);
	if (!datagram)
		return 0;
	if (!(packet->fragment & IP_MORE_FRAGMENTS))
		datagram->total = (packet->fragment & IP_OFFSET) * 8 + packet->l4_bytes;
	gone = __sync_fetch_and_add(&datagram->gone, packet->l4_bytes) + packet->l4_bytes;
	if (datagram->total && gone >= datagram->total)
		datagram->known = 0;
	return 0;
}

/* Writes the identification that the fragment leaves with. Not into a tagged frame. */
INLINE int write_id(struct __sk_buff *skb, const struct packet *packet)
{
	struct ethhdr *eth = (void *)(long)skb->data;
	ip_header *ip = (void *)(eth + 1);

	if ((void *)(ip + 1) > (void *)(long)skb->data_end || eth->h_proto != be16(ETH_P_FAMILY))
		return -1;
#if FAMILY == 4
	ip->check = checksum_replace(ip->check, ip->id, packet->new_id);
	ip->id = packet->new_id;
	return 0;
#else
	return bpf_skb_store_bytes(skb, packet->id_offset, &packet->new_id, sizeof(packet->new_id),
				   BPF_F_RECOMPUTE_CSUM);
#endif
}
