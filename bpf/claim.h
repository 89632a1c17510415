/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Claims: who has which five-tuple. The rules that keep one tuple from having two owners:
 *
 *  - A claim comes into being by insert-if-absent (BPF_NOEXIST) or by taking over an expired one.
 *  - claim.expires_ns alone says whether it is alive. Whoever changes hands or lifetime does it by
 *    compare-and-swap on that word; CLAIM_BUSY marks the moment in which its other fields are rewritten,
 *    and nobody touches a busy claim.
 *  - The flow table is a cache of the client's side. A flow may send without asking its claim only until
 *    flow.refresh_ns, which is always well before the claim could expire; after that it must refresh the
 *    claim first, and find that the claim still names this flow.
 */
#pragma once

#include "client.h"
#include "maps.h"
#include "parse.h"

#define SEQUENCE_STEP_MAX (1u << 24) /* bytes a window can plausibly be open; more is a forgery or a stray */
#define REFRESH_PARTS 8 /* a claim is refreshed when an eighth of its lifetime is gone */

INLINE int same_flow(const struct flow_key *a, const struct flow_key *b)
{
	return same_address(a->client, b->client) && same_address(a->remote, b->remote) && a->client_port == b->client_port &&
	       a->remote_port == b->remote_port && a->onramp == b->onramp && a->protocol == b->protocol;
}

/* Numbers wrap; they only move on, and never by more than a window can be. */
INLINE void move_on(__u32 *number, __u32 to)
{
	if (to - *number < SEQUENCE_STEP_MAX)
		*number = to;
}

/* Remembers how far the sender of a packet has come. A SYN begins the numbers: see below. */
INLINE void follow(const struct packet *packet, __u32 *acknowledged, __u32 *sent)
{
	if (packet->protocol != IPPROTO_TCP || (packet->tcp_flags & (TCP_SYN | TCP_RST)) ||
	    (packet->fragment & IP_OFFSET)) /* a later fragment has no numbers */
		return;
	if (packet->tcp_flags & TCP_ACK)
		move_on(acknowledged, packet->acknowledgement);
	move_on(sent, packet->sequence_end);
}

/* A SYN: where its sender begins, of which the receiver has acknowledged nothing yet. */
INLINE void begin(const struct packet *syn, __u32 *acknowledged, __u32 *sent, __u32 *receiver_acknowledged)
{
	if (syn->tcp_flags & TCP_ACK)
		*acknowledged = syn->acknowledgement;
	*sent = syn->sequence_end;
	*receiver_acknowledged = syn->sequence;
}

/* Would the receiver of this RST believe it (RFC 5961 section 3.2, RFC 7857 section 2.2)? Its number must lie
 * between what the receiver has acknowledged and the end of what the sender has sent; where the sender has sent
 * nothing yet (connection refused), the RST must acknowledge the receiver's SYN. Data that somebody forges can
 * move that end, but an RST further than a window away is not believed even then. */
INLINE int believable(const struct packet *rst, __u32 receiver_acknowledged, __u32 sender_sent, __u32 receiver_sent,
		      int opening)
{
	if (opening)
		return (rst->tcp_flags & TCP_ACK) && rst->acknowledgement == receiver_sent;
	return rst->sequence - receiver_acknowledged < SEQUENCE_STEP_MAX && (__s32)(sender_sent - rst->sequence) >= 0;
}

/* What a packet from the client adds to what was seen. Traffic after an RST means that the conversation
 * goes on (RFC 7857 section 2.2); a SYN after its end, that the same ports begin another one. */
INLINE __u32 seen_out(__u32 state, __u8 flags)
{
	if (flags & TCP_RST)
		return state | SEEN_RST;
	if (flags & TCP_SYN)
		return state & (SEEN_RST | SEEN_FIN_OUT | SEEN_FIN_IN) ? state & SEEN_COUNTED : state;
	return (state & ~SEEN_RST) | SEEN_OUT | (flags & TCP_FIN ? SEEN_FIN_OUT : 0);
}

INLINE __u32 seen_in(__u32 state, __u8 flags)
{
	if (flags & TCP_RST)
		return state | SEEN_RST;
	return state | SEEN_IN | (flags & TCP_FIN ? SEEN_FIN_IN : 0);
}

/* Is the conversation over by all that was seen? */
INLINE int ended(__u32 state)
{
	return (state & SEEN_RST) || (state & (SEEN_FIN_OUT | SEEN_FIN_IN)) == (SEEN_FIN_OUT | SEEN_FIN_IN);
}

INLINE int established(__u32 state)
{
	return (state & (SEEN_OUT | SEEN_IN)) == (SEEN_OUT | SEEN_IN) && !ended(state);
}

/* Of a pool that maps so: may anybody send to the port? */
INLINE int filters_independently(const struct pool *pool, __u8 protocol)
{
	return pool->behaviour & (protocol == IPPROTO_TCP ? BEHAVIOUR_FILTERING_TCP :
				  protocol == IPPROTO_UDP ? BEHAVIOUR_FILTERING_UDP : BEHAVIOUR_FILTERING_ICMP);
}

INLINE int maps_independently(const struct pool *pool, __u8 protocol)
{
	return pool->behaviour & (protocol == IPPROTO_TCP ? BEHAVIOUR_MAPPING_TCP :
				  protocol == IPPROTO_UDP ? BEHAVIOUR_MAPPING_UDP : BEHAVIOUR_MAPPING_ICMP);
}

/* How long a claim lives without traffic, by what was seen (RFC 7857 section 2, RFC 4787 REQ-5, RFC 5508 REQ-2). */
INLINE __u64 lifetime_ns(const struct pool *pool, __u8 protocol, __u32 state)
{
	if (protocol == IPPROTO_UDP)
		return pool->udp_ns;
	if (protocol == PROTOCOL_ICMP)
		return pool->icmp_ns;
	if (ended(state))
		return pool->tcp_closing_ns;
	return established(state) ? pool->tcp_established_ns : pool->tcp_opening_ns;
}

/* A flow asks its claim this often. Bounded by the closing time, because the peer's RST may shorten the
 * claim's life to that without the flow noticing. */
INLINE __u64 refresh_ns(const struct pool *pool, __u64 lifetime)
{
	return (lifetime < pool->tcp_closing_ns ? lifetime : pool->tcp_closing_ns) / REFRESH_PARTS;
}

INLINE int alive(struct claim *claim, __u64 now)
{
	__u64 expires = *(volatile __u64 *)&claim->expires_ns;

	return expires > now && expires != CLAIM_BUSY;
}

/* Sets a claim's life to `until`. False: it expired or changed hands, or `flow` is not its owner. */
INLINE int extend(struct claim *claim, const struct flow_key *flow, __u64 now, __u64 until)
{
	for (int tries = 0; tries < 4; tries++) {
		__u64 old = *(volatile __u64 *)&claim->expires_ns;

		if (old <= now || old == CLAIM_BUSY || !same_flow(&claim->flow, flow))
			return 0;
		if (__sync_val_compare_and_swap(&claim->expires_ns, old, until) == old)
			return 1;
	}
	return 1; /* four others refreshed it meanwhile: it is alive */
}

/* Does the client send from another MAC address than before? Its router failed over, or it was made anew under its
 * old address: from then on replies must go there. */
INLINE int has_moved(void *data, void *end, const struct flow *flow)
{
	struct ethhdr *eth = data;
	const __u16 *now = (void *)eth->h_source, *before = (void *)flow->client_mac;

	if ((void *)(eth + 1) > end)
		return 0;
	return (now[0] ^ before[0]) | (now[1] ^ before[1]) | (now[2] ^ before[2]);
}

/* Sets what was seen of a conversation; one that is over no longer counts against its client. */
INLINE void set_state(struct claim *claim, __u32 state)
{
	__u32 before = claim->state;

	if (before == state)
		return;
	before = __sync_lock_test_and_set(&claim->state, state);
	if ((state & SEEN_COUNTED) && ended(before) != ended(state))
		client_counts(&claim->flow, ended(state) ? -1 : 1);
}

/* How long the port of an expired claim rests (RFC 6888 REQ-8): strangers who knew the client there would meet
 * another. Where only the client's own partners are let in there is no need (REQ-8 c). */
INLINE __u64 rest_ns(const struct claim_key *key, const struct claim *claim)
{
	__u32 pool_key = claim->pool;
	struct pool *pool;

	if (!is_unspecified(key->remote) || key->remote_port)
		return 0;
	pool = bpf_map_lookup_elem(&pools, &pool_key);
	return pool && filters_independently(pool, key->protocol) ? pool->rest_ns : 0;
}

/* Leaves in `former` whose it was. */
INLINE void drop_flow_of(const struct claim_key *key, const struct claim *claim, struct flow_key *former)
{
	struct flow *flow;

	*former = claim->flow; /* the claim is in a map that may change */
	flow = bpf_map_lookup_elem(&flows, former);
	if (claim->state & SEEN_COUNTED)
		client_returns(former, ended(claim->state));
	if (flow && same_address(flow->local, key->local) && flow->local_port == key->local_port)
		bpf_map_delete_elem(&flows, former);
}
