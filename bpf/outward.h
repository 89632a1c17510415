/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is the same of all that goes out, whether a client sends it or a socket of this host: what may begin a
 * conversation, and whose conversation an ICMP error is about. */
#pragma once

#include "claim.h"
#include "quote.h"
#include "rewrite.h"
#include "scratch.h"

/* May this packet begin a conversation? */
INLINE int begins(const struct packet *packet)
{
	if (packet->protocol == IPPROTO_TCP)
		return (packet->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN;
	return packet->protocol == IPPROTO_UDP || packet->icmp_type == ICMP_ECHO;
}

/* The flow that an outgoing ICMP error is about, or 0. Its quote came to the sender, so the quoted destination finds
 * the flow. Leaves the quote, and the flow's key, in `scratch`; packet pointers taken before are void afterwards. */
INLINE struct flow *quoted_flow(struct __sk_buff *skb, const struct packet *packet, struct scratch *scratch)
{
	struct flow_key *key = &scratch->flow_key;
	struct quote *quote = &scratch->quote;

	pull(skb, QUOTE_MAX);
	if (parse_quote((void *)(long)skb->data, (void *)(long)skb->data_end, packet, quote) ||
	    !same_address(packet->destination, quote->source))
		return 0;
	zero_fill(key, sizeof(*key));
	key->client = quote->destination;
	key->remote = quote->source;
	key->client_port = quote->destination_port;
	key->remote_port = quote->protocol == PROTOCOL_ICMP ? 0 : quote->source_port;
	key->onramp = skb->ifindex;
	key->protocol = quote->protocol;
	return bpf_map_lookup_elem(&flows, key);
}
