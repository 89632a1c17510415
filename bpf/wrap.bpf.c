// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* tc ingress of an on-ramp without Ethernet (TUN, WireGuard), in front of egress_out.
 *
 * Packets there begin with the IP header. This program puts an Ethernet header in front of them, addresses zero, so
 * that everything behind it knows one kind of packet only, and the header's room is there when the packet leaves by
 * the uplink. The kernel takes it off again: before its own IP layer, and when a reply is redirected to such a device.
 * GSO buffers stay whole.
 */
#include "count.h"
#include "rewrite.h"

#define TYPE_OFFSET 12

INLINE int drop(struct __sk_buff *skb, enum reason reason)
{
	struct packet unknown = {};

	count_drop(reason, HOOK_EGRESS_OUT, skb->ifindex, &unknown);
	return TC_ACT_SHOT;
}

SEC("tc")
int wrap(struct __sk_buff *skb)
{
	__u16 type = 0; /* of what is neither: the kernel makes of it what it would have anyway */
	__u8 version = 0;

	/* Not skb->protocol: with a packet information header a TUN's user says what that is. */
	bpf_skb_load_bytes(skb, 0, &version, sizeof(version));
	if (version >> 4 == 4)
		type = be16(ETH_P_IP);
	if (version >> 4 == 6)
		type = be16(ETH_P_IPV6);
	if (bpf_skb_change_head(skb, ETH_HLEN, 0) || bpf_skb_store_bytes(skb, TYPE_OFFSET, &type, sizeof(type), 0))
		return drop(skb, REASON_INTERNAL);
	return TC_ACT_UNSPEC;
}
LICENSE;
