// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* What a program is told of a resolver of its pool that stands in for one on loopback (dns.h): the address that it asked,
 * as the source of an answer (cgroup/recvmsg) and as the peer (cgroup/getpeername). Attached only while a pool has such
 * resolvers, because the kernel locks a socket for each datagram while there is any such program. They run for every
 * program of the host: first of all they ask for the port. */
#include "asked.h"

#define ALLOW 1 /* all that these hooks may say */

/* Never called: see name_types in rewrite.h. */
static __attribute__((noinline, used)) int name_socket(struct bpf_sock *sock)
{
	return 0;
}

/* Not when the pool has others since: then it is one more that owes nothing. */
INLINE void has_answered(__u32 pool, int at)
{
	struct pool_dns *dns = bpf_map_lookup_elem(&resolvers, &pool);

	if (dns && dns->owes_since_ns[at])
		dns->owes_since_ns[at] = 0;
}

/* The address that the socket's program knows the resolver by; 0 when it asked it by no other. */
INLINE ip_address *known_by(struct bpf_sock_addr *context, ip_address resolver, const int answers)
{
	struct bpf_sock *sock = context->sk;
	struct asked *asked = sock ? bpf_sk_storage_get(&asked_of, sock, 0, 0) : 0;

	if (!asked)
		return 0;
	for (int at = 0; at < RESOLVERS_MAX; at++) {
		if (!same_address(asked->of[at].resolver, resolver))
			continue;
		if (answers)
			has_answered(asked->pool, at);
		return &asked->of[at].loopback;
	}
	return 0;
}

#if FAMILY == 4

INLINE int tell(struct bpf_sock_addr *context, const int answers)
{
	ip_address *loopback = context->user_port == DNS_PORT ? known_by(context, context->user_ip4, answers) : 0;

	if (loopback)
		context->user_ip4 = *loopback;
	return ALLOW;
}

/* IPv4, of a socket of IPv6. */
INLINE int tell_mapped(struct bpf_sock_addr *context, const int answers)
{
	ip_address *loopback;

	if (context->user_port != DNS_PORT || context->user_ip6[0] || context->user_ip6[1] ||
	    context->user_ip6[2] != be32(0xffff))
		return ALLOW;
	loopback = known_by(context, context->user_ip6[3], answers);
	if (loopback)
		context->user_ip6[3] = *loopback;
	return ALLOW;
}

SEC("cgroup/recvmsg4")
int socket_receive(struct bpf_sock_addr *context)
{
	return tell(context, 1);
}

SEC("cgroup/recvmsg6")
int receive_mapped(struct bpf_sock_addr *context)
{
	return tell_mapped(context, 1);
}

SEC("cgroup/getpeername4")
int socket_peer(struct bpf_sock_addr *context)
{
	return tell(context, 0);
}

SEC("cgroup/getpeername6")
int peer_mapped(struct bpf_sock_addr *context)
{
	return tell_mapped(context, 0);
}

#else

INLINE int tell(struct bpf_sock_addr *context, const int answers)
{
	ip_address *loopback, resolver;

	if (context->user_port != DNS_PORT)
		return ALLOW;
	for (int i = 0; i < 4; i++)
		resolver.words[i] = context->user_ip6[i];
	loopback = known_by(context, resolver, answers);
	for (int i = 0; loopback && i < 4; i++)
		context->user_ip6[i] = loopback->words[i];
	return ALLOW;
}

SEC("cgroup/recvmsg6")
int socket_receive6(struct bpf_sock_addr *context)
{
	return tell(context, 1);
}

SEC("cgroup/getpeername6")
int socket_peer6(struct bpf_sock_addr *context)
{
	return tell(context, 0);
}

#endif

LICENSE;
