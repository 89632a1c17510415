/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The life of one forwarded flow: routed, opened (search.h finds the port), refreshed, sent. */
#pragma once

#include "claim.h"
#include "count.h"
#include "hold.h"
#include "rewrite.h"
#include "scratch.h"
#include "slots.h"

#define HOP_CACHED_NS 1000000000ULL /* a changed route or neighbour is noticed after this */

INLINE int drop(struct __sk_buff *skb, enum reason reason, enum hook hook, const struct packet *packet)
{
	count_drop(reason, hook, skb->ifindex, packet);
	return TC_ACT_SHOT;
}

enum way { WAY_UPLINK, WAY_HOST, WAY_NONE, WAY_OFF };

/* The way to a soft-unicast address (hairpin, RFC 4787 REQ-9): the server that has its slice, perhaps this one.
 * The packet arrives there like one from the internet, with its sender's outside address and port. */
INLINE enum way route_hairpin(const struct packet *packet, struct flow *flow, __u64 now)
{
	__u32 first = 0, owner = 0, own;
	struct settings *self = bpf_map_lookup_elem(&settings, &first);
	struct server *server, *me;
	enum place place = place_of(packet->destination, packet->destination_port, &owner);

	if (!self || (place != PLACE_HERE && place != PLACE_ELSEWHERE))
		return WAY_NONE;
	own = self->self;
	server = bpf_map_lookup_elem(&servers, &owner);
	me = bpf_map_lookup_elem(&servers, &own);
	if (!server || !me || server->kind == SERVER_UNUSED)
		return WAY_NONE;
	flow->hop_ns = now + HOP_CACHED_NS;
	flow->hop_mtu = self->uplink_mtu;
	flow->hairpin = place == PLACE_HERE;
	copy(flow->hop_destination, server->mac, ETH_ALEN);
	if (server->kind == SERVER_REMOTE) { /* by our own director, which puts it into a tunnel */
		flow->hop_mtu -= TUNNEL_BYTES;
		flow->hairpin = 1;
		copy(flow->hop_destination, me->mac, ETH_ALEN);
	}
	copy(flow->hop_source, me->mac, ETH_ALEN);
	return WAY_UPLINK;
}

/* Where would the kernel route the packet? WAY_OFF: it does not say, forwarding is off. Fills the flow's next hop
 * when it is the uplink; hop_ns stays 0 while the neighbour's MAC address is not known. */
ALONE enum way route(struct __sk_buff *skb, const struct packet *packet, struct flow *flow, __u64 now,
		     ip_address *gateway)
{
	struct scratch *scratch = scratch_here();
	struct bpf_fib_lookup *fib;
	struct settings *self;
	__u32 first = 0;
	long result;

	if (!packet || !flow || !gateway || !scratch)
		return WAY_NONE;
	if (in_block(packet->destination))
		return route_hairpin(packet, flow, now);
	fib = &scratch->fib;
	zero_fill(fib, sizeof(*fib));
	fib->family = SOCKET_FAMILY;
	fib->ifindex = skb->ifindex;
	fib->l4_protocol = packet->protocol;
	copy(&fib->OF_FAMILY(_src), &packet->source, sizeof(ip_address));
	copy(&fib->OF_FAMILY(_dst), &packet->destination, sizeof(ip_address));
	fib->tot_len = 1; /* asks for the MTU; GSO packets are longer and cut later */
	result = bpf_fib_lookup(skb, fib, sizeof(*fib), 0);
	self = bpf_map_lookup_elem(&settings, &first);
	if (result == BPF_FIB_LKUP_RET_NOT_FWDED)
		return WAY_HOST;
	if (result == BPF_FIB_LKUP_RET_FWD_DISABLED)
		return WAY_OFF;
	if (!self || (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH) ||
	    fib->ifindex != self->uplink)
		return WAY_NONE;
	copy(gateway, &fib->OF_FAMILY(_dst), sizeof(*gateway));
	flow->hop_ns = 0;
	flow->hairpin = 0;
	if (result == BPF_FIB_LKUP_RET_SUCCESS) {
		flow->hop_ns = now + HOP_CACHED_NS;
		copy(flow->hop_destination, fib->dmac, ETH_ALEN);
		copy(flow->hop_source, fib->smac, ETH_ALEN);
		flow->hop_mtu = fib->mtu_result;
	}
	return WAY_UPLINK;
}

/* Sends a frame that is ready but for its Ethernet addresses. While the next hop's is not known the kernel asks
 * for it, and holds the packet meanwhile. Returns the verdict; never fails to give one. */
ALONE int transmit(struct __sk_buff *skb, const struct flow *hop, __u64 now, const ip_address *gateway)
{
	__u32 first = 0;
	struct settings *self = bpf_map_lookup_elem(&settings, &first);
	struct bpf_redir_neigh neighbour = {}; /* filled below: all constant, it would come to lie in a map */

	if (!hop || !gateway || !self || (hop->hop_ns > now && set_mac(skb, hop->hop_destination, hop->hop_source)))
		return TC_ACT_SHOT;
	neighbour.nh_family = SOCKET_FAMILY;
	copy(&neighbour.OF_FAMILY(_nh), gateway, sizeof(*gateway));
	count(TRAFFIC_OUT);
	if (hop->hairpin)
		return bpf_redirect(self->uplink, BPF_F_INGRESS);
	return hop->hop_ns > now ? bpf_redirect(self->uplink, 0) :
				   bpf_redirect_neigh(self->uplink, &neighbour, sizeof(neighbour), 0);
}

/* Translates the packet and sends it out of the uplink. Returns REASON_NONE with the verdict in `verdict`. */
INLINE enum reason send(struct __sk_buff *skb, struct packet *packet, struct flow *flow, __u64 now, int *verdict)
{
	struct rewrite rewrite = {.end = END_SOURCE, .address = flow->local, .port = flow->local_port, .hops = 1};
	ip_address gateway = UNSPECIFIED;

	if (flow->hop_ns <= now && route(skb, packet, flow, now, &gateway) != WAY_UPLINK)
		return REASON_NO_ROUTE;
	if (flow->hop_ns > now && packet_bytes(skb, packet) > flow->hop_mtu)
		return REASON_TOO_BIG;
	if (unlikely(is_fragment(packet))) {
		*verdict = fragment_leaves(skb, packet, flow, now);
		if (*verdict != GO_ON)
			return REASON_NONE;
	}
	follow(packet, &flow->acknowledged, &flow->sent);
	if (translate(skb, packet, &rewrite))
		return REASON_INTERNAL;
	*verdict = transmit(skb, flow, now, &gateway);
	return REASON_NONE;
}

/* The mapping of an endpoint-independent pool is a claim and a flow without a remote end. It is where its client is,
 * and lives as long as the longest of its conversations; so that an ended TCP conversation does not keep its port for
 * hours, one that is the only one the mapping has had shortens it, too. `session`: the one that goes on. */
INLINE void refresh_mapping(const struct pool *pool, const struct flow_key *key, const struct claim *session, __u64 now,
			    __u64 lifetime)
{
	struct flow_key mapping = *key;
	struct claim_key claim_key = {.protocol = key->protocol};
	struct claim *claim;
	struct flow *flow;

	if (!maps_independently(pool, key->protocol))
		return;
	mapping.remote = UNSPECIFIED;
	mapping.remote_port = 0;
	flow = bpf_map_lookup_elem(&flows, &mapping);
	if (!flow)
		return;
	claim_key.local = flow->local;
	claim_key.local_port = flow->local_port;
	claim = bpf_map_lookup_elem(&claims, &claim_key);
	if (!claim || !same_flow(&claim->flow, &mapping))
		return;
	if (claim->expires_ns < now + lifetime || claim->sent == 1)
		extend(claim, &mapping, now, now + lifetime);
	copy(claim->client_mac, session->client_mac, ETH_ALEN);
	copy(claim->onramp_mac, session->onramp_mac, ETH_ALEN);
}

/* Is the slice of the flow's local end this server's, now? */
ALONE int held_here(const struct flow *flow)
{
	__u32 owner;

	return flow && place_of(flow->local, flow->local_port, &owner) == PLACE_HERE;
}

/* Asks the claim of a known flow, keeps it alive, and tells it where the client is. Returns 0 when it is no longer
 * this flow's, or when its slice is lost and what follows can begin anew elsewhere (a TCP conversation cannot: the
 * guard says why). */
ALONE int refresh(struct __sk_buff *skb, struct flow *flow, const struct flow_key *key, const struct packet *packet,
		  __u64 now)
{
	struct ethhdr *eth = (void *)(long)skb->data;
	struct claim_key claim_key = {};
	__u32 state, pool_key;
	struct claim *claim;
	struct pool *pool;
	__u64 lifetime;
	__u8 flags;

	if (!flow || !key || !packet)
		return 0;
	flags = packet->tcp_flags;
	claim_key.local = flow->local;
	claim_key.local_port = flow->local_port;
	claim_key.remote = key->remote;
	claim_key.remote_port = key->remote_port;
	claim_key.protocol = key->protocol;
	claim = bpf_map_lookup_elem(&claims, &claim_key);
	if (!claim || (void *)(eth + 1) > (void *)(long)skb->data_end ||
	    ((key->protocol != IPPROTO_TCP || (flags & TCP_SYN)) && !held_here(flow)))
		return 0;
	if ((flags & TCP_RST) && (claim->state & SEEN_IN) &&
	    !believable(packet, claim->acknowledged, flow->sent, claim->sent, 0))
		flags &= ~TCP_RST;
	pool_key = claim->pool;
	pool = bpf_map_lookup_elem(&pools, &pool_key);
	if (!pool)
		return 0;
	state = key->protocol == IPPROTO_TCP ? seen_out(claim->state, flags) : claim->state;
	lifetime = lifetime_ns(pool, key->protocol, state);
	if (!extend(claim, key, now, now + lifetime))
		return 0;
	set_state(claim, state);
	copy(claim->client_mac, eth->h_source, ETH_ALEN);
	copy(claim->onramp_mac, eth->h_dest, ETH_ALEN);
	copy(flow->client_mac, eth->h_source, ETH_ALEN);
	if ((flags & (TCP_SYN | TCP_RST)) == TCP_SYN)
		begin(packet, &flow->acknowledged, &flow->sent, &claim->acknowledged);
	refresh_mapping(pool, key, claim, now, lifetime);
	/* Until the conversation is established its state may change with every packet; once it has ended, its port
	 * may be used again when both sides have been silent for a moment. */
	flow->refresh_ns = 0;
	if (ended(state))
		claim->refresh_in_ticks = 0;
	if (key->protocol != IPPROTO_TCP || established(state))
		flow->refresh_ns = now + refresh_ns(pool, lifetime);
	return 1;
}
