/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Clamping TCP's maximum segment size in SYN and SYN/ACK, for paths that lose "fragmentation needed" (RFC 4459
 * section 3.2 discusses it; RFC 9293 section 3.7.1 has the option). It is only ever lowered. */
#pragma once

#include "rewrite.h"

#define OPTION_END 0
#define OPTION_NOP 1
#define OPTION_MSS 2
#define OPTIONS_MAX 40   /* bytes, and so the most options that there can be */
#define MSS_OPTION_BYTES 4
#define TCP_IP_BYTES (sizeof(ip_header) + sizeof(struct tcphdr)) /* without options: what an MSS does not count */

/* What an on-ramp lets a SYN announce, when `mtu` (0: not known) is that of the way to the peer. 0: anything. */
INLINE __u32 mss_limit(const struct onramp *onramp, __u32 mtu)
{
	if (!onramp->mss_mtu)
		return onramp->mss;
	if (!mtu || mtu > onramp->mss_mtu)
		mtu = onramp->mss_mtu;
	return mtu > TCP_IP_BYTES ? mtu - TCP_IP_BYTES : 0;
}

INLINE __u16 swapped(__u16 value)
{
	return value >> 8 | value << 8;
}

/* Lowers every MSS option of a SYN to `limit` (0: does nothing). Options that contradict their lengths end the walk, and are left for
 * the receiver to judge. Returns 0, or nonzero when the packet cannot be changed; packet pointers are void afterwards. */
ALONE int clamp_mss(struct __sk_buff *skb, __u32 l4_offset, __u32 limit)
{
	__u32 at = l4_offset + sizeof(struct tcphdr), check = l4_offset + __builtin_offsetof(struct tcphdr, check), end;
	__u8 option[MSS_OPTION_BYTES] = {};
	__u16 old, new = be16((__u16)limit);

	if (!limit || bpf_skb_load_bytes(skb, l4_offset + 12, option, 1))
		return 0;
	end = l4_offset + (option[0] >> 4) * 4;
	for (int i = 0; i < OPTIONS_MAX; i++) {
		if (at + MSS_OPTION_BYTES > end || bpf_skb_load_bytes(skb, at, option, sizeof(option)) ||
		    option[0] == OPTION_END)
			return 0;
		if (option[0] == OPTION_NOP) {
			at++;
			continue;
		}
		if (option[1] < 2)
			return 0;
		copy(&old, option + 2, sizeof(old));
		if (option[0] == OPTION_MSS && option[1] == MSS_OPTION_BYTES && be16(old) > limit) {
			/* At an odd place the value lies across two of the words that the checksum adds up. */
			int odd = (at - l4_offset) & 1;

			if (bpf_skb_store_bytes(skb, at + 2, &new, sizeof(new), 0) ||
			    bpf_l4_csum_replace(skb, check, odd ? swapped(old) : old, odd ? swapped(new) : new, 2))
				return -1;
		}
		at += option[1];
	}
	return 0;
}
