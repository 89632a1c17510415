// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* An XDP program that lets everything pass. A veth delivers frames that its peer sent with XDP_TX only
 * while it has an XDP program itself: labs attach this one to the router's ends of the servers' uplinks. */
#include "bpf.h"

SEC("xdp.frags")
int pass(struct xdp_md *xdp)
{
	return XDP_PASS;
}

LICENSE;
