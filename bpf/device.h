/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Sockets that are bound to a device (SO_BINDTODEVICE). The kernel's lookups show them only to what comes by that very
 * device, and a search is asked by packets of others, or by programs. So they are looked for here in the tables that
 * the kernel keeps by port: of UDP its sockets, of TCP what is bound (connections and ended ones are, too).
 *
 * Nothing is locked. A table that changes this moment can hide a socket, as it does from the kernel's own lookups, or
 * lead astray: what is read is never written to, and the number of steps is bounded. Who has more sockets at one port than
 * that, is taken to hold it. */
#pragma once

#include "netns.h"

#define STEPS_MAX 8192

struct inet_bind_bucket { /* a port */
	struct possible_net ib_net;
	unsigned short port;
	struct hlist_node node;
	struct hlist_head bhash2; /* 6.8 */
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

/* Is this a socket that is bound to a device, and has the tuple, or the port towards all? What is in the way of one family
 * only because a socket of IPv6 has any address, counts even if it wants IPv6 alone. */
INLINE int holds_on_device(const struct sock_common *sock, const struct net *net, const struct claim_key *key)
{
	if (!sock->skc_bound_dev_if || sock->skc_num != be16(key->local_port) || sock->skc_net.net != net)
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

INLINE int udp_held_on_device(const struct net *net, const struct claim_key *key)
{
	const struct udp_table *table = net->ipv4.udp_table;
	const struct hlist_node *at =
		ELEMENT(struct udp_hslot, table->hash, (be16(key->local_port) + net->hash_mix) & table->mask)->head.first;
	struct bpf_iter_num steps;
	int held = 0;

	if (!at)
		return 0;
	bpf_iter_num_new(&steps, 0, STEPS_MAX);
	held = 1;
	while (bpf_iter_num_next(&steps)) {
		if (!at) {
			held = 0;
			break;
		}
		if (holds_on_device(AROUND(struct sock_common, skc_node, at), net, key))
			break;
		at = at->next;
	}
	bpf_iter_num_destroy(&steps);
	return held;
}

INLINE int tcp_held_on_device(const struct net *net, const struct claim_key *key)
{
	const struct inet_hashinfo *info = net->ipv4.tcp_death_row.hashinfo;
	const struct hlist_node *bucket = ELEMENT(struct inet_bind_hashbucket, info->bhash,
						  (be16(key->local_port) + net->hash_mix) & (info->bhash_size - 1))
						  ->chain.first,
				*place = 0, *at = 0;
	struct bpf_iter_num steps;
	int held = 1;

	if (!bucket || !HAS_FIELD(struct inet_bind_bucket, bhash2))
		return 0;
	bpf_iter_num_new(&steps, 0, STEPS_MAX);
	while (bpf_iter_num_next(&steps)) {
		if (at) {
			if (holds_on_device(AROUND(struct sock_common, skc_bind_node, at), net, key))
				break;
			at = at->next;
		} else if (place) {
			const struct inet_bind2_bucket *found = AROUND(struct inet_bind2_bucket, bhash_node, place);

			at = found->owners.first;
			place = place->next;
		} else if (bucket) {
			const struct inet_bind_bucket *found = AROUND(struct inet_bind_bucket, node, bucket);

			if (found->port == be16(key->local_port))
				place = found->bhash2.first;
			bucket = bucket->next;
		} else {
			held = 0;
			break;
		}
	}
	bpf_iter_num_destroy(&steps);
	return held;
}

/* Does a socket of the network namespace `of` hold the tuple that is bound to a device? */
INLINE int held_on_device(__u64 of, const struct claim_key *key)
{
	const struct net *net = bpf_rdonly_cast((void *)of, kernel_type(struct net));

	if (key->protocol == IPPROTO_UDP)
		return udp_held_on_device(net, key);
	return key->protocol == IPPROTO_TCP && tcp_held_on_device(net, key);
}
