// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Return routing, XDP on the uplink of every server.
 *
 * A packet to a soft-unicast address may arrive at any server. The owner of (address, port) is read from
 * the slot table and nothing else: no per-connection state, so every server gives the same answer.
 *
 *   not in an announced block  -> pass, untouched
 *   this server's slice        -> to the client at once (fast.h), or up to egress and the kernel stack
 *   a neighbour's slice        -> new destination MAC, hop limit down by one, back out of the uplink
 *   nobody's, expired          -> dropped with a reason
 */
#include "fast.h"
#include "quote.h"

INLINE int drop(struct xdp_md *xdp, enum reason reason, const struct packet *packet)
{
	count_drop(reason, HOOK_DIRECTOR, xdp->ingress_ifindex, packet);
	return XDP_DROP;
}

INLINE int steer(struct xdp_md *xdp, __u32 owner, const struct packet *packet)
{
	void *data = (void *)(long)xdp->data, *end = (void *)(long)xdp->data_end;
	struct server *server = bpf_map_lookup_elem(&servers, &owner);
	struct ethhdr *eth = data;
	ip_header *ip = (void *)(eth + 1);

	if (!server || server->kind != SERVER_NEIGHBOUR)
		return drop(xdp, REASON_NO_NEIGHBOUR, packet);
	if (packet->ttl <= 1) /* two servers whose tables disagree would send it to and fro for ever */
		return drop(xdp, REASON_STEER_LOOP, packet);
	if ((void *)(ip + 1) > end)
		return drop(xdp, REASON_INTERNAL, packet);
	decrease_ttl(ip);
	copy(eth->h_source, eth->h_dest, ETH_ALEN);
	copy(eth->h_dest, server->mac, ETH_ALEN);
	count(TRAFFIC_STEERED);
	return XDP_TX;
}

SEC("xdp.frags")
int director(struct xdp_md *xdp)
{
	void *data = (void *)(long)xdp->data, *end = (void *)(long)xdp->data_end;
	struct packet packet;
	struct slot *slot;
	int parsed = parse(data, end, bpf_xdp_get_buff_len(xdp), &packet);
	__u16 port = packet.destination_port;

	if (parsed == PARSED_OTHER || parsed == PARSED_IPV6)
		return XDP_PASS;
	if (parsed == PARSED_ERROR) {
		struct quote quote;

		/* To the owner of what it quotes; only an error that came back to where the packet left from can be true. */
		if (parse_quote(data, end, &packet, &quote) || !same_address(quote.source, packet.destination))
			parsed = refuse(&packet, REASON_ICMP_ERROR);
		port = quote.source_port;
	}
	if (parsed == PARSED_DROP) { /* for us? then say why; if not, hands off */
		struct address_key key = {.address = packet.destination};

		if (!bpf_map_lookup_elem(&addresses, &key) && !in_block(packet.destination))
			return XDP_PASS;
		return drop(xdp, packet.reason, &packet);
	}
	switch (place_of(packet.destination, port, &slot)) {
	case PLACE_NOT_OURS:
		return XDP_PASS;
	case PLACE_HERE:
		count(TRAFFIC_HERE);
		return parsed == PARSED_OK ? fast_in(xdp, &packet) : XDP_PASS;
	case PLACE_ELSEWHERE:
		return steer(xdp, slot->owner, &packet);
	case PLACE_EXPIRED:
		return drop(xdp, REASON_LEASE_EXPIRED, &packet);
	default:
		return drop(xdp, REASON_NO_OWNER, &packet);
	}
}

LICENSE;
