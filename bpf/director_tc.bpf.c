// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Return routing (direct.h), tc ingress of the uplink, before egress_in.
 *
 *   director_tc   for devices without an XDP of their own, and for virtual ones, where XDP would have large (GSO) packets
 *                 cut first. What it sends on leaves by the uplink's tc egress, where the guard knows it again.
 *   remote        behind the director in XDP, where servers are reached through tunnels (tunnel.h): opens those that end
 *                 here, and sends what XDP could not. It decides alike, and has nothing to do where there are no tunnels.
 */
#include "decapsulate.h"
#include "encapsulate.h"
#include "handed.h"

INLINE int drop(struct __sk_buff *skb, enum reason reason, const struct packet *packet)
{
	count_drop(reason, HOOK_DIRECTOR, skb->ifindex, packet);
	return TC_ACT_SHOT;
}

/* Opens a tunnel that ends here, and goes on with what was in it. Returns 0, or nonzero with the verdict. */
INLINE int take(struct __sk_buff *skb, struct packet *packet, int *parsed, int *verdict)
{
#pragma clang loop unroll(disable)
	for (int opened = 0; opened < 2; opened++) {
		pull_headers(skb);
		*parsed = parse((void *)(long)skb->data, (void *)(long)skb->data_end, skb->len, packet);
		if (likely(!may_be_tunnel(*parsed, packet)) || opened) /* a tunnel in a tunnel is not ours */
			return 0;
		*verdict = decapsulate(skb, packet);
		if (*verdict == TUNNEL_NONE)
			return 0;
		if (*verdict != TUNNEL_OPENED)
			return 1;
	}
	return 0;
}

/* `behind` the director in XDP: what is here has been counted. */
INLINE int direct_buffer(struct __sk_buff *skb, const int behind)
{
	enum direction direction;
	struct packet packet;
	__u32 owner = 0;
	int parsed, verdict;
	struct ethhdr *eth;

	if (is_others(skb))
		return TC_ACT_UNSPEC;
	if (take(skb, &packet, &parsed, &verdict))
		return verdict;
	if (parsed == PARSED_ERROR)
		pull(skb, QUOTE_MAX);
	direction = direct((void *)(long)skb->data, (void *)(long)skb->data_end, parsed, &packet, &owner);
	eth = (void *)(long)skb->data;
	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return TC_ACT_UNSPEC;
	/* Out of a tunnel, but not for this server. (Of the other family: its own director says so.) */
	if (unlikely(is_opened(eth)) && direction != DIRECTION_HERE && direction != DIRECTION_NOWHERE &&
	    parsed != PARSED_OTHER)
		return drop(skb, REASON_TUNNEL_ASTRAY, &packet);
	switch (direction) {
	case DIRECTION_HERE:
		if (!behind || is_opened(eth))
			count(TRAFFIC_HERE);
		return TC_ACT_UNSPEC;
	case DIRECTION_ELSEWHERE:
		return steer(skb, &packet, owner, HOOK_DIRECTOR);
	case DIRECTION_NOWHERE:
		return drop(skb, packet.reason, &packet);
	default:
		if (parsed == PARSED_ERROR)
			learn_path(skb, &packet);
		if (parsed == PARSED_OTHER)
			return hand_over(skb, behind ? HANDED_TC_REMOTE : HANDED_TC_DIRECTOR);
		return TC_ACT_UNSPEC;
	}
}

SEC("tc")
int HOOK(director_tc)(struct __sk_buff *skb)
{
	return direct_buffer(skb, 0);
}

SEC("tc")
int HOOK(remote)(struct __sk_buff *skb)
{
	return tunnel_end() ? direct_buffer(skb, 1) : TC_ACT_UNSPEC;
}

LICENSE;
