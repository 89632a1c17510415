// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* XDP on an on-ramp whose device can: established flows leave without a socket buffer. See fast.h. */
#include "fast.h"
#include "handed.h"

SEC("xdp.frags")
int HOOK(fast)(struct xdp_md *xdp)
{
	void *data = (void *)(long)xdp->data, *end = (void *)(long)xdp->data_end;
	struct flow_key key = {};
	struct packet packet;
	int parsed = parse(data, end, bpf_xdp_get_buff_len(xdp), &packet);

	if (parsed == PARSED_OTHER)
		return hand_on(xdp, HANDED_FAST);
	if (parsed != PARSED_OK)
		return XDP_PASS;
	key.client = packet.source;
	key.remote = packet.destination;
	key.client_port = packet.source_port;
	key.remote_port = packet.protocol == PROTOCOL_ICMP ? 0 : packet.destination_port;
	key.onramp = xdp->ingress_ifindex;
	key.protocol = packet.protocol;
	return fast_out(xdp, &packet, &key);
}
LICENSE;
