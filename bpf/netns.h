/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Network namespaces, and the packets and sockets in them, as the kernel has them: what struct __sk_buff and struct bpf_sock
 * do not show. Only fields that the kernel has had for many versions; their places are looked up when the program is
 * loaded (CO-RE). */
#pragma once

#include "abi.h"
#include "bpf.h"

#define RTN_BROADCAST 3

struct hlist_node {
	struct hlist_node *next;
} __attribute__((preserve_access_index));

struct hlist_head {
	struct hlist_node *first;
} __attribute__((preserve_access_index));

struct udp_hslot {
	struct hlist_head head;
} __attribute__((preserve_access_index));

struct inet_bind_hashbucket {
	struct hlist_head chain;
} __attribute__((preserve_access_index));

struct udp_table {
	struct udp_hslot *hash; /* by port */
	unsigned int mask;
} __attribute__((preserve_access_index));

struct inet_hashinfo {
	struct inet_bind_hashbucket *bhash; /* by port */
	unsigned int bhash_size;
} __attribute__((preserve_access_index));

struct inet_timewait_death_row {
	struct inet_hashinfo *hashinfo;
} __attribute__((preserve_access_index));

struct netns_ipv4 {
	struct inet_timewait_death_row tcp_death_row;
	struct udp_table *udp_table;
} __attribute__((preserve_access_index));

struct net {
	__u64 net_cookie;
	__u32 hash_mix;
	struct netns_ipv4 ipv4;
} __attribute__((preserve_access_index));

struct possible_net {
	struct net *net;
};

struct atomic64 {
	__s64 counter;
};

struct sock_common {
#if FAMILY == 4
	ip_address skc_daddr;
	ip_address skc_rcv_saddr;
#else
	ip_address skc_v6_daddr;
	ip_address skc_v6_rcv_saddr;
#endif
	__u16 skc_dport;
	volatile __u16 skc_num;
	struct atomic64 skc_cookie;
	volatile unsigned char skc_state;
	unsigned long skc_flags;
	struct possible_net skc_net;
	unsigned short skc_family;
	int skc_bound_dev_if;
	struct hlist_node skc_node;      /* by port, of UDP */
	struct hlist_node skc_bind_node; /* likewise, of TCP */
} __attribute__((preserve_access_index));

struct net_device {
	struct possible_net nd_net;
} __attribute__((preserve_access_index));

struct sk_buff {
	struct net_device *dev;
	unsigned long _skb_refdst; /* its route, and one bit that is none */
} __attribute__((preserve_access_index));

struct rtable {
	__u16 rt_type;
} __attribute__((preserve_access_index));

/* Never called: see name_types in rewrite.h. */
static __attribute__((noinline, used)) int name_net(struct net *net, struct net_device *device)
{
	return 0;
}

static __attribute__((noinline, used)) int name_tables(struct inet_hashinfo *info, struct inet_bind_hashbucket *ports,
						       struct udp_table *table, struct udp_hslot *slot,
						       struct hlist_node *node)
{
	return 0;
}

INLINE const struct sock_common *common_of(const void *sock)
{
	return bpf_rdonly_cast(sock, kernel_type(struct sock_common));
}

/* The kernel's struct of the network namespace that it is in. */
INLINE __u64 netns_of(const void *sock)
{
	return (__u64)common_of(sock)->skc_net.net;
}

INLINE __u64 netns_of_packet(struct __sk_buff *skb)
{
	const struct sk_buff *packet = bpf_cast_to_kern_ctx(skb);

	return (__u64)packet->dev->nd_net.net;
}

INLINE __u64 netns_cookie_of(const void *sock)
{
	return common_of(sock)->skc_net.net->net_cookie;
}
