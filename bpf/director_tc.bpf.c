// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Return routing (direct.h), tc ingress of the uplink, before egress_in: for devices without an XDP of their own, and
 * for virtual ones, where XDP would have large (GSO) packets cut first. What it sends on leaves by the uplink's
 * tc egress, where the guard knows it again. */
#include "direct.h"
#include "rewrite.h"

INLINE int drop(struct __sk_buff *skb, enum reason reason, const struct packet *packet)
{
	count_drop(reason, HOOK_DIRECTOR, skb->ifindex, packet);
	return TC_ACT_SHOT;
}

SEC("tc")
int HOOK(director_tc)(struct __sk_buff *skb)
{
	struct packet packet;
	__u32 owner = 0;
	enum reason reason;
	int parsed;

	if (is_others(skb))
		return TC_ACT_UNSPEC;
	pull_headers(skb);
	parsed = parse((void *)(long)skb->data, (void *)(long)skb->data_end, skb->len, &packet);
	if (parsed == PARSED_ERROR)
		pull(skb, QUOTE_MAX);
	switch (direct((void *)(long)skb->data, (void *)(long)skb->data_end, parsed, &packet, &owner)) {
	case DIRECTION_NEIGHBOUR:
		reason = aim((void *)(long)skb->data, (void *)(long)skb->data_end, owner, &packet);
		return reason ? drop(skb, reason, &packet) : bpf_redirect(skb->ifindex, 0);
	case DIRECTION_NOWHERE:
		return drop(skb, packet.reason, &packet);
	default:
		return TC_ACT_UNSPEC;
	}
}

LICENSE;
