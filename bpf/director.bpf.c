// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Return routing (direct.h), XDP on the uplink: for network cards whose driver runs it. A reply of an established
 * flow goes to its client at once (fast.h), where the on-ramp takes frames from XDP. A packet for a remote server goes
 * into its tunnel here when that is plain; if not, and when one comes out of a tunnel, `remote` at tc does it. */
#include "encapsulate.h"
#include "fast.h"
#include "handed.h"

INLINE int drop(struct xdp_md *xdp, enum reason reason, const struct packet *packet)
{
	count_drop(reason, HOOK_DIRECTOR, xdp->ingress_ifindex, packet);
	return XDP_DROP;
}

SEC("xdp.frags")
int HOOK(director)(struct xdp_md *xdp)
{
	void *data = (void *)(long)xdp->data, *end = (void *)(long)xdp->data_end;
	struct packet packet;
	__u32 owner = 0;
	int parsed = parse(data, end, bpf_xdp_get_buff_len(xdp), &packet);
	struct server *server, *me;
	enum reason reason;

	switch (direct(data, end, parsed, &packet, &owner)) {
	case DIRECTION_HERE:
		count(TRAFFIC_HERE);
		return parsed == PARSED_OK ? fast_in(xdp, &packet) : XDP_PASS;
	case DIRECTION_ELSEWHERE:
		server = bpf_map_lookup_elem(&servers, &owner);
		if (server && server->kind == SERVER_REMOTE) {
			me = tunnel_end();
			return me ? encapsulate_frame(xdp, &packet, owner, me, server) :
				    drop(xdp, REASON_NO_NEIGHBOUR, &packet);
		}
		reason = aim(data, end, server, &packet);
		return reason ? drop(xdp, reason, &packet) : XDP_TX;
	case DIRECTION_NOWHERE:
		return drop(xdp, packet.reason, &packet);
	default:
		return parsed == PARSED_OTHER ? hand_on(xdp, HANDED_DIRECTOR) : XDP_PASS;
	}
}

LICENSE;
