// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* A socket sends a packet, cgroup_skb/egress at the cgroups that are in agreements. (Not at the root: the kernel's own way
 * here costs every packet of the host more than what is asked.)
 *
 * A packet of an agreement leaves by the uplink, where it gets the address of its pool, or the guard sees it. By another
 * interface (a second card, a VLAN, a tunnel device) it would leave under whatever address it has: it is refused here,
 * and its program gets EPERM.
 *
 *   by the uplink, by loopback                    -> untouched: nearly all there is
 *   in no agreement, excused                      -> untouched
 *   on its link alone (discovery, DHCP)           -> untouched
 *   to clients, by an on-ramp                     -> untouched
 *   TCP that began elsewhere (a service answers)  -> untouched, but for what has a shared address
 *   anything else                                 -> refused
 *
 * In another network namespace there is no uplink, and no on-ramp. Packets that come through are nobody's here. */
#include "count.h"
#include "handed.h"
#include "link.h"
#include "netns.h"
#include "sender.h"
#include "slots.h"

#define LET_GO 1
#define REFUSE 0 /* with EPERM */
#define LOOPBACK 1 /* the interface `lo`, in every network namespace */

/* Never called: see name_types in rewrite.h. */
static __attribute__((noinline, used)) int name_types(struct bpf_flow_keys *keys, struct bpf_sock *sock)
{
	return 0;
}

/* To everybody on the link, by an address that only the routing table knows. */
INLINE int is_broadcast(struct __sk_buff *skb)
{
#if FAMILY == 4
	const struct sk_buff *packet = bpf_cast_to_kern_ctx(skb);
	const struct rtable *route = bpf_rdonly_cast((void *)(packet->_skb_refdst & ~1UL), kernel_type(struct rtable));

	return route->rt_type == RTN_BROADCAST;
#else
	return 0;
#endif
}

/* May the socket send it by whatever interface? Of TCP, only what begins a conversation is refused, and what had begun
 * at the uplink: the program answers whoever has connected to it. */
INLINE int goes_on(struct bpf_sock *sock, const struct packet *packet)
{
	struct sender *sender;

	if (sock->type != SOCK_STREAM || packet->protocol != IPPROTO_TCP ||
	    (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
		return 0;
	sender = bpf_sk_storage_get(&senders, sock, 0, 0);
	return !sender || is_unspecified(sender->from);
}

/* A packet of an agreement that does not leave by the uplink. `here`: it is in the network namespace of the uplink. */
INLINE int stray(struct __sk_buff *skb, struct bpf_sock *sock, int here)
{
	__u32 interface = skb->ifindex;
	struct packet packet;

	zero_fill(&packet, sizeof(packet));
	/* What cannot be read has its addresses even so, unless it has no header at all. */
	parse_ip((void *)(long)skb->data, (void *)(long)skb->data_end, 0, skb->len, &packet);
	if (stays_on_link(&packet) || is_broadcast(skb))
		return LET_GO;
	if (here && bpf_map_lookup_elem(&onramps, &interface))
		return LET_GO;
	if (goes_on(sock, &packet) && !is_ours(packet.source))
		return LET_GO;
	count_drop(here ? REASON_NOT_UPLINK : REASON_NAMESPACE, HOOK_SOCKET, here ? interface : 0, &packet);
	return REFUSE;
}

SEC("cgroup_skb/egress")
int HOOK(socket_packet)(struct __sk_buff *skb)
{
	__u32 first = 0;
	struct settings *self = bpf_map_lookup_elem(&settings, &first);
	struct bpf_sock *sock = skb->sk;
	int here;

	if (!self || !self->netns_cookie || !sock || skb->ifindex == LOOPBACK)
		return LET_GO;
	here = netns_cookie_of(sock) == self->netns_cookie;
	if (here && skb->ifindex == self->uplink)
		return LET_GO;
	if (skb->protocol != be16(ETH_P_FAMILY)) {
#if FAMILY == 4
		bpf_tail_call(skb, &handed_sent, 0);
#endif
		return LET_GO;
	}
	if (agreement_of_packet(skb).kind != AGREEMENT_POOL)
		return LET_GO;
	sock = bpf_sk_fullsock(sock);
	return sock ? stray(skb, sock, here) : LET_GO;
}

LICENSE;
