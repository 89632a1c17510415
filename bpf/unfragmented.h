/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* IPv6, of which fragments are not handled yet: parse.h refuses them, so nothing that gets here is one. Stands in the
 * place of fragment.h, hold.h and cut.h. */
#pragma once

#include "parse.h"

#define GO_ON -2

INLINE int is_fragment(const struct packet *packet)
{
	return 0;
}

INLINE int is_later(const struct packet *packet)
{
	return 0;
}

INLINE int gone_on(const struct packet *packet, __u32 side)
{
	return 0;
}

INLINE int fragment_leaves(struct __sk_buff *skb, struct packet *packet, const struct flow *flow, __u64 now)
{
	return GO_ON;
}

INLINE int fragment_in(struct __sk_buff *skb, struct packet *packet)
{
	return GO_ON;
}

INLINE int fragment_out(struct __sk_buff *skb, struct packet *packet, const struct onramp *onramp)
{
	return GO_ON;
}

INLINE int guard_fragment(struct __sk_buff *skb, struct packet *packet)
{
	return TC_ACT_UNSPEC;
}

/* Routers do not fragment IPv6, nor does this one: the sender gets the error. */
INLINE int cut_up(struct __sk_buff *skb, const struct packet *packet, __u32 mtu, int from_wire)
{
	return -1;
}
