/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Later fragments that come before their first one wait in a ring of places, whole, with their Ethernet header. When
 * the first one comes, it and those that waited arrive once more, it before them, and then all is known. So nothing
 * but the first hook needs to know that there is such a thing as waiting.
 *
 * A place belongs to whoever changes held.state from its number, or from HELD_FREE, to HELD_BUSY. The places of one
 * datagram are a chain, from datagram.last on: pushed one by one, taken all at once.
 */
#pragma once

#include "count.h"
#include "fragment.h"
#include "scratch.h"

/* The key of the fragment in hand. IPv6's is too large for the stack, below all that call one another. */
#if FAMILY == 4
#define KEY_HERE(key) struct datagram_key key##_here, *key = &key##_here
#else
#define KEY_HERE(key)                            \
	struct scratch *key##_in = scratch_here(); \
	struct datagram_key *key = key##_in ? &key##_in->datagram_key : 0
#endif

#define HELD_FREE 0
#define HELD_BUSY (~0u)
#define RELEASED_MAX 64 /* the largest datagram in fragments of 1,024 bytes */

INLINE void count_lost(const struct datagram_key *key, __u64 now)
{
	struct drop *drop = dropped(REASON_FRAGMENT_LOST, key->interface == SIDE_WIRE ? HOOK_EGRESS_IN : HOOK_EGRESS_OUT,
				    key->interface, now);

	if (!drop)
		return;
	copy(drop->last.source, &key->source, sizeof(key->source));
	copy(drop->last.destination, &key->destination, sizeof(key->destination));
	drop->last.source_port = drop->last.destination_port = 0;
	drop->last.protocol = key->protocol;
}

INLINE struct held *place_numbered(__u32 number)
{
	__u32 at = number % ((struct bpf_map *)&held)->max_entries;

	return bpf_map_lookup_elem(&held, &at);
}

INLINE int same_datagram(const struct datagram_key *a, const struct datagram_key *b)
{
	return same_address(a->source, b->source) && same_address(a->destination, b->destination) && a->interface == b->interface &&
	       a->id == b->id && a->protocol == b->protocol;
}

struct release {
	struct __sk_buff *skb;
	const struct datagram_key *key;
	__u64 now_ns;
	__u32 number; /* of the next place in the chain */
	__u32 released;
	__u32 first; /* the buffer is the first fragment */
};

static long release_one(__u32 index, struct release *release)
{
	__u32 number = release->number, bytes;
	struct held *place;

	if (!number)
		return 1;
	place = place_numbered(number);
	if (!place || __sync_val_compare_and_swap(&place->state, number, HELD_BUSY) != number)
		return 1; /* somebody else needed the place, and said so */
	if (!same_datagram(&place->key, release->key)) { /* our entry was another's when this one was held */
		__sync_lock_test_and_set(&place->state, number);
		return 1;
	}
	release->number = place->previous;
	bytes = place->bytes;
	keep(bytes);
	if (place->at_ns + FRAGMENT_NS <= release->now_ns || bytes < ETH_HLEN || bytes > HELD_BYTES) {
		count_lost(&place->key, release->now_ns);
	} else {
		if (release->first && !release->released)
			bpf_clone_redirect(release->skb, release->skb->ifindex, BPF_F_INGRESS);
		release->released++;
		if (!bpf_skb_change_tail(release->skb, bytes, 0) &&
		    !bpf_skb_store_bytes(release->skb, 0, place->frame, bytes, BPF_F_RECOMPUTE_CSUM))
			bpf_clone_redirect(release->skb, release->skb->ifindex, BPF_F_INGRESS);
		count(TRAFFIC_RELEASED);
	}
	__sync_lock_test_and_set(&place->state, HELD_FREE);
	return 0;
}

/* Makes those that wait for this datagram's first fragment arrive again, and before them, when the buffer is the
 * `first`, that one. Returns 0 when none waits; else the buffer is spent. */
ALONE int release_held(struct __sk_buff *skb, const struct datagram_key *key, __u64 now, int first)
{
	struct release release = {.skb = skb, .key = key, .now_ns = now, .first = first};
	struct datagram *datagram;

	if (!key)
		return 0;
	datagram = bpf_map_lookup_elem(&datagrams, key);
	if (!datagram || !datagram->last)
		return 0;
	release.number = __sync_lock_test_and_set(&datagram->last, 0);
	bpf_loop(RELEASED_MAX, release_one, &release, 0);
	return release.released;
}

/* Keeps a later fragment until its first one comes. Returns the verdict: the buffer itself is not needed any more. */
ALONE int hold(struct __sk_buff *skb, const struct packet *packet, __u32 side, __u64 now)
{
	__u32 number, old, bytes = skb->len;
	struct datagram *datagram;
	struct held *place;
	KEY_HERE(key);

	if (!packet || !key)
		return TC_ACT_SHOT;
	key_of(packet, side, key);
	datagram = entry_of(key, now);
	number = next_number(NUMBER_HELD);
	place = place_numbered(number);
	keep(bytes);
	if (!datagram || !place || number == HELD_FREE || number == HELD_BUSY || bytes < ETH_HLEN || bytes > HELD_BYTES)
		goto lost;
	old = *(volatile __u32 *)&place->state;
	if (old == HELD_BUSY || __sync_val_compare_and_swap(&place->state, old, HELD_BUSY) != old)
		goto lost;
	if (old != HELD_FREE)
		count_lost(&place->key, now);
	if (bpf_skb_load_bytes(skb, 0, place->frame, bytes)) {
		__sync_lock_test_and_set(&place->state, HELD_FREE);
		goto lost;
	}
	place->at_ns = now;
	place->key = *key;
	place->bytes = bytes;
	place->previous = datagram->last;
	__sync_lock_test_and_set(&place->state, number);
	for (int tries = 0; tries < 8; tries++) {
		old = *(volatile __u32 *)&datagram->last;
		place->previous = old;
		if (__sync_val_compare_and_swap(&datagram->last, old, number) == old)
			break;
	}
	count(TRAFFIC_HELD);
	if (datagram->known) {
		if (datagram->since_ns + FRAGMENT_NS > now) /* the first one came this moment */
			release_held(skb, key, now, 0);
		else
			datagram->known = 0;
	}
	return TC_ACT_SHOT;
lost:
	count_lost(key, now);
	return TC_ACT_SHOT;
}

#define GO_ON -2

/* A fragment that leaves from one of our ports: gives it the identification that it leaves with, and sends those on
 * their way that waited for it. Returns GO_ON, or the verdict when the buffer is spent. */
ALONE int fragment_leaves(struct __sk_buff *skb, struct packet *packet, const struct flow *flow, __u64 now)
{
	KEY_HERE(key);

	if (!packet || !flow || !key)
		return TC_ACT_SHOT;
	if (!is_later(packet)) {
		key_of(packet, skb->ifindex, key);
		if (remember(packet, key, &flow->local, flow->local_port, now))
			return TC_ACT_SHOT;
		if (release_held(skb, key, now, 1))
			return TC_ACT_SHOT;
	}
	gone_on(packet, skb->ifindex);
	return write_id(skb, packet) ? TC_ACT_SHOT : GO_ON;
}
