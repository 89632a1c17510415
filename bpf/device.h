/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The tables of sockets that the kernel keeps by port: of UDP its sockets, of TCP what is bound (connections and ended ones
 * are, too). They are walked for two reasons:
 *
 * A port that no socket has is free, and the lookups, which find their way by both ends, need not be made. Most are. One thing of
 * TCP is only in the table by both ends: a connection that somebody has asked for, whose listener closes this moment, or has
 * another port (a transparent proxy). So this is for sockets, which the kernel itself looks for there when they connect; and
 * for UDP.
 *
 * Sockets that are bound to a device (SO_BINDTODEVICE) are nowhere else to be seen: the kernel's lookups show them only to
 * what comes by that very device, and a search is asked by packets of others, or by programs.
 *
 * Nothing is locked. Ports of TCP (since Linux 6.15) and sockets of UDP are there until all walks are over (RCU), and one of UDP
 * that takes another port meanwhile shows it. What else changes this moment can lead astray: what is read is never
 * written to, and the number of steps is bounded. Who has more sockets at one port than that, is taken to hold it. */
#pragma once

#include "netns.h"

#define STEPS_MAX 8192

struct callback_head {
	void *next;
} __attribute__((preserve_access_index));

struct inet_bind_bucket { /* a port */
	struct possible_net ib_net;
	unsigned short port;
	struct hlist_node node;
	struct hlist_head bhash2; /* 6.8 */
	struct callback_head rcu; /* 6.15 */
} __attribute__((preserve_access_index));

struct inet_bind2_bucket { /* a port at one address */
	struct hlist_node bhash_node;
	struct hlist_head owners;
} __attribute__((preserve_access_index));

/* The struct that a node of a list is in. */
#define AROUND(type, member, node)                                                                   \
	((const type *)bpf_rdonly_cast(                                                              \
		(const void *)(node) - __builtin_preserve_field_info(((type *)0)->member, 0 /* offset */), \
		kernel_type(type)))
/* An element of an array of the kernel's. */
#define ELEMENT(type, array, index)                                                                                   \
	((const type *)bpf_rdonly_cast((const void *)(array) + (__u64)(index) * __builtin_preserve_type_info(*(type *)0, 1), \
				       kernel_type(type)))
#define HAS_FIELD(type, member) __builtin_preserve_field_info(((type *)0)->member, 2 /* exists */)

/* Is this a socket, one that has the port, that is bound to a device, and has the tuple, or the port towards all? What is in
 * the way of one family only because a socket of IPv6 has any address, counts even if it wants IPv6 alone. */
INLINE int holds_on_device(const struct sock_common *sock, const struct claim_key *key)
{
	if (!sock->skc_bound_dev_if)
		return 0;
#if FAMILY == 4
	if (!is_unspecified(sock->skc_rcv_saddr) && !same_address(sock->skc_rcv_saddr, key->local))
		return 0;
	if (sock->skc_dport)
		return sock->skc_dport == key->remote_port && same_address(sock->skc_daddr, key->remote);
#else
	if (sock->skc_family != SOCKET_FAMILY ||
	    (!is_unspecified(sock->skc_v6_rcv_saddr) && !same_address(sock->skc_v6_rcv_saddr, key->local)))
		return 0;
	if (sock->skc_dport)
		return sock->skc_dport == key->remote_port && same_address(sock->skc_v6_daddr, key->remote);
#endif
	return key->protocol == IPPROTO_UDP || sock->skc_state == STATE_LISTEN;
}

enum at_port {
	PORT_FREE, /* no socket has it */
	PORT_USED, /* by somebody: the lookups say whether the tuple is theirs */
	PORT_HELD, /* one that is bound to a device has the tuple; not told when asked `briefly` */
};

INLINE enum at_port udp_port(const struct net *net, const struct claim_key *key, int briefly)
{
	const struct udp_table *table = net->ipv4.udp_table;
	__u32 slot = (be16(key->local_port) + net->hash_mix) & table->mask;
	const struct hlist_node *at = ELEMENT(struct udp_hslot, table->hash, slot)->head.first;
	enum at_port found = PORT_HELD, seen = PORT_FREE;
	struct bpf_iter_num steps;

	if (!at)
		return PORT_FREE;
	bpf_iter_num_new(&steps, 0, STEPS_MAX);
	while (bpf_iter_num_next(&steps)) {
		const struct sock_common *sock;
		__u16 port;

		if (!at) {
			found = seen;
			break;
		}
		sock = AROUND(struct sock_common, skc_node, at);
		if (sock->skc_num == be16(key->local_port) && sock->skc_net.net == net) {
			seen = PORT_USED;
			if (briefly || holds_on_device(sock, key)) {
				found = briefly ? PORT_USED : PORT_HELD;
				break;
			}
		}
		at = *(const struct hlist_node *volatile *)&at->next;
		port = sock->skc_num;
		if (((port + net->hash_mix) & table->mask) != slot) { /* it has moved, and the way leads elsewhere */
			seen = PORT_USED;
			at = 0;
		}
	}
	bpf_iter_num_destroy(&steps);
	return found;
}

INLINE enum at_port tcp_port(const struct net *net, const struct claim_key *key, int briefly)
{
	const struct inet_hashinfo *info = net->ipv4.tcp_death_row.hashinfo;
	const struct hlist_node *bucket = ELEMENT(struct inet_bind_hashbucket, info->bhash,
						  (be16(key->local_port) + net->hash_mix) & (info->bhash_size - 1))
						  ->chain.first,
				*place = 0, *at = 0;
	enum at_port found = PORT_HELD, seen = HAS_FIELD(struct inet_bind_bucket, rcu) ? PORT_FREE : PORT_USED;
	struct bpf_iter_num steps;

	if (!bucket || !HAS_FIELD(struct inet_bind_bucket, bhash2))
		return bucket ? PORT_USED : seen;
	bpf_iter_num_new(&steps, 0, STEPS_MAX);
	while (bpf_iter_num_next(&steps)) {
		if (at) {
			if (holds_on_device(AROUND(struct sock_common, skc_bind_node, at), key))
				break;
			at = at->next;
		} else if (place) {
			const struct inet_bind2_bucket *part = AROUND(struct inet_bind2_bucket, bhash_node, place);

			at = part->owners.first;
			place = place->next;
		} else if (bucket) {
			const struct inet_bind_bucket *port = AROUND(struct inet_bind_bucket, node, bucket);

			if (port->port == be16(key->local_port) && port->ib_net.net == net) {
				if (briefly) {
					found = PORT_USED;
					break;
				}
				place = port->bhash2.first;
				seen = PORT_USED;
			}
			bucket = bucket->next;
		} else {
			found = seen;
			break;
		}
	}
	bpf_iter_num_destroy(&steps);
	return found;
}

/* Who has the port of the tuple in the network namespace `of`, as far as it can be said without its remote end? One of
 * enum at_port. */
ALONE int at_port(__u64 of, const struct claim_key *key, int briefly)
{
	const struct net *net = bpf_rdonly_cast((void *)of, kernel_type(struct net));

	if (!key)
		return PORT_USED;
	if (key->protocol == IPPROTO_UDP)
		return udp_port(net, key, briefly);
	return key->protocol == IPPROTO_TCP ? tcp_port(net, key, briefly) : PORT_FREE;
}
