// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Translation of this host's own packets, tc egress of the uplink, in front of the guard.
 *
 * Most sockets in an agreement get an address and port of their pool when they connect. What cannot, leaves the stack
 * with the host's own address: UDP without connect(), ping, raw sockets, sockets that were bound elsewhere. Such a
 * packet is translated here like a client's, by the same code. The client is the host's address and port, its on-ramp
 * the uplink: its replies are rewritten by egress_in and go up. No packet of an agreement leaves untranslated: it is
 * dropped with a reason, and the socket gets an ICMP error.
 *
 * Packets of other sockets are none of ours, with one exception: the kernel answers in the name of sockets that are
 * gone (resets, ICMP errors), and an answer that belongs to a flow leaves as the flow does.
 */
#include "handed.h"
#include "icmp.h"
#include "link.h"
#include "mute.h"
#include "open.h"
#include "outward.h"
#include "room.h"
#include "sender.h"

/* Who sends? */
enum speaker {
	SPEAKER_ANY,    /* a socket in an agreement */
	SPEAKER_OLDER,  /* likewise, with a TCP connection that is older than the agreement, or was accepted */
	SPEAKER_KERNEL, /* perhaps in the name of one that is */
};

/* Counts the refusal and tells the sender: as if whom it wanted to talk to had refused, because the kernel does not
 * believe errors that come by the uplink from an address of its own. */
INLINE int reject(struct __sk_buff *skb, const struct packet *packet, __u32 pool, enum reason reason)
{
	__u32 code = packet->protocol == IPPROTO_TCP ? UNREACHABLE_HOST : UNREACHABLE_PROHIBITED;

	count_drop(reason, HOOK_UPLINK, skb->ifindex, packet);
	if (is_later(packet) || muted(packet, skb->ifindex, pool) ||
	    icmp_error(skb, packet, &packet->destination, ERROR(ICMP_UNREACHABLE, code)))
		return TC_ACT_SHOT;
	return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
}

/* Gives the packet of a known flow its shared source, and lets it go on to the guard. */
INLINE int leave(struct __sk_buff *skb, struct packet *packet, struct flow *flow, __u64 now)
{
	struct rewrite rewrite = {.end = END_SOURCE, .address = flow->local, .port = flow->local_port};
	int verdict = is_fragment(packet) ? fragment_leaves(skb, packet, flow, now) : GO_ON;

	if (verdict != GO_ON)
		return drop(skb, REASON_INTERNAL, HOOK_UPLINK, packet);
	follow(packet, &flow->acknowledged, &flow->sent);
	if (translate(skb, packet, &rewrite))
		return drop(skb, REASON_INTERNAL, HOOK_UPLINK, packet);
	count(TRAFFIC_OUT);
	return TC_ACT_UNSPEC;
}

/* A packet of no flow: its first, or none of ours. */
INLINE int first_packet(struct __sk_buff *skb, struct packet *packet, const struct flow_key *key, struct trial *trial,
			__u32 pool, enum speaker speaker)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	int reason;

	if (speaker == SPEAKER_KERNEL)
		return TC_ACT_UNSPEC;
	if (!begins(packet))
		return speaker == SPEAKER_OLDER ? TC_ACT_UNSPEC : drop(skb, REASON_NO_FLOW, HOOK_UPLINK, packet);
	if (!bpf_map_lookup_elem(&pools, &pool)) /* its addresses are all of the other family */
		return reject(skb, packet, pool, REASON_FAMILY);
	zero_fill(trial, sizeof(*trial));
	if (packet->protocol == IPPROTO_TCP) {
		__u32 nothing;

		begin(packet, &trial->flow.acknowledged, &trial->flow.sent, &nothing);
	}
	reason = open_flow(skb, key, trial, pool, now);
	if (reason && make_room(reason, trial))
		reason = open_flow(skb, key, trial, pool, now);
	return reason ? reject(skb, packet, pool, reason) : leave(skb, packet, &trial->flow, now);
}

/* An ICMP error about what came to a flow, or through a mapping, leaves as that does. Others are the kernel's own
 * matter, or none that a program in an agreement could send. */
ALONE int error_leaves(struct __sk_buff *skb, const struct packet *packet, enum speaker speaker)
{
	struct scratch *scratch = scratch_here();
	struct flow *flow;

	if (!packet || !scratch)
		return TC_ACT_SHOT;
	zero_fill(&scratch->flow_key, sizeof(scratch->flow_key));
	flow = quoted_flow(skb, packet, scratch);
	if (!flow) {
		scratch->flow_key.remote = UNSPECIFIED;
		scratch->flow_key.remote_port = 0;
		flow = bpf_map_lookup_elem(&flows, &scratch->flow_key);
	}
	if (!flow)
		return speaker == SPEAKER_KERNEL ? TC_ACT_UNSPEC : drop(skb, REASON_ICMP_ERROR, HOOK_UPLINK, packet);
	if (translate_error((void *)(long)skb->data, (void *)(long)skb->data_end, packet, &scratch->quote, 0,
			    flow->local, flow->local_port, 0))
		return drop(skb, REASON_INTERNAL, HOOK_UPLINK, packet);
	count(TRAFFIC_OUT);
	return TC_ACT_UNSPEC;
}

/* Gives a fragment without ports those of its datagram's first one, which the stack has sent before it. Returns 0
 * when it has ports. */
ALONE int fragment_of_own(struct __sk_buff *skb, struct packet *packet)
{
	KEY_HERE(key);

	if (!packet || !key)
		return -1;
	if (!is_later(packet))
		return 0;
	key_of(packet, skb->ifindex, key);
	return !recall(packet, key, bpf_ktime_get_coarse_ns());
}

/* The packet has the host's own source. Does what has to be done with it. */
INLINE int translate_own(struct __sk_buff *skb, struct scratch *scratch, __u32 pool, enum speaker speaker)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct packet *packet = &scratch->packet;
	struct flow_key *key = &scratch->flow_key;
	struct flow *flow;

	zero_fill(key, sizeof(*key));
	key->client = packet->source;
	key->remote = packet->destination;
	key->client_port = packet->source_port;
	key->remote_port = packet->protocol == PROTOCOL_ICMP ? 0 : packet->destination_port;
	key->onramp = skb->ifindex;
	key->protocol = packet->protocol;
	flow = bpf_map_lookup_elem(&flows, key);
	if (flow && (flow->refresh_ns <= now || (packet->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST))) &&
	    !refresh(skb, flow, key, packet, now)) {
		bpf_map_delete_elem(&flows, key);
		flow = 0;
	}
	if (flow)
		return leave(skb, packet, flow, now);
	if (is_later(packet) && speaker != SPEAKER_KERNEL)
		return drop(skb, REASON_NO_FLOW, HOOK_UPLINK, packet);
	return first_packet(skb, packet, key, &scratch->trial, pool, speaker);
}

/* Of another family: the cheapest question, and it has its own program. What has a tag may be of any. */
INLINE int is_other(struct __sk_buff *skb)
{
	struct ethhdr *eth = (void *)(long)skb->data;

	return (void *)(eth + 1) <= (void *)(long)skb->data_end && eth->h_proto != be16(ETH_P_FAMILY) &&
	       !is_tag(eth->h_proto);
}

/* To everybody on the link, or to some of them. */
INLINE int is_broadcast(struct __sk_buff *skb)
{
	struct ethhdr *eth = (void *)(long)skb->data;

	return (void *)(eth + 1) <= (void *)(long)skb->data_end && (eth->h_dest[0] & 1);
}

/* Has a TCP socket a port of its pool? Then all that it sends has it, and is none of ours. */
INLINE int has_its_port(const struct bpf_sock *sock)
{
	ip_address local;

	if (sock->protocol != IPPROTO_TCP)
		return 0;
#if FAMILY == 4
	local = sock->src_ip4;
#else
	for (int i = 0; i < 4; i++)
		local.words[i] = sock->src_ip6[i];
#endif
	return has_slices(local);
}

/* Is it a TCP connection without a flow? With one, its sender would be stored, from its SYN on. Most of a host have none. */
INLINE int is_settled(const struct bpf_sock *sock)
{
	return sock->type == SOCK_STREAM && sock->protocol == IPPROTO_TCP && sock->state != STATE_SYN_SENT &&
	       !has_storage(sock);
}

/* A packet that this host sends, for `speaker`; `sock`: if that is in an agreement, its socket. */
INLINE int own_packet(struct __sk_buff *skb, __u32 pool, enum speaker speaker, struct bpf_sock *sock)
{
	struct scratch *scratch = scratch_here();
	struct sender *sender, fresh = {};
	struct packet *packet;
	int parsed;

	if (!scratch)
		return TC_ACT_SHOT;
	packet = &scratch->packet;
	pull_headers(skb);
	parsed = parse((void *)(long)skb->data, (void *)(long)skb->data_end, skb->len, packet);
	if (parsed == PARSED_OTHER) /* it has a tag */
		return speaker == SPEAKER_KERNEL ? TC_ACT_UNSPEC : drop(skb, REASON_PROTOCOL, HOOK_UPLINK, packet);
	if (stays_on_link(packet) || is_broadcast(skb) || is_ours(packet->source))
		return TC_ACT_UNSPEC;
	if (parsed == PARSED_ERROR)
		return error_leaves(skb, packet, speaker);
	if (speaker == SPEAKER_KERNEL && (parsed != PARSED_OK || packet->protocol != IPPROTO_TCP))
		return TC_ACT_UNSPEC;
	if (parsed != PARSED_OK && parsed != PARSED_FRAGMENT)
		return drop(skb, packet->reason, HOOK_UPLINK, packet);
	if (parsed == PARSED_FRAGMENT && fragment_of_own(skb, packet))
		return drop(skb, REASON_FRAGMENT_LOST, HOOK_UPLINK, packet);
	if (sock && begins(packet)) {
		sender = bpf_sk_storage_get(&senders, sock, &fresh, BPF_SK_STORAGE_GET_F_CREATE);
		if (!sender) /* its next packets would be taken for those of a connection without a flow */
			return drop(skb, REASON_INTERNAL, HOOK_UPLINK, packet);
		sender->from = packet->source;
	}
	return translate_own(skb, scratch, pool, speaker);
}

SEC("tc")
int HOOK(uplink)(struct __sk_buff *skb)
{
	struct bpf_sock *sock, *full = 0, *agreed_with = 0;
	struct sender *sender;
	struct agreement agreement;
	enum speaker speaker = SPEAKER_KERNEL;
	__u32 pool = 0;

	/* It passes through only, or leaves by a VLAN, which is another interface, or has a program of its own. */
	if (skb->ingress_ifindex || skb->vlan_present)
		return TC_ACT_UNSPEC;
	if (is_other(skb))
		return hand_over(skb, HANDED_TC_UPLINK);
	sock = skb->sk;
	if (sock)
		full = bpf_sk_fullsock(sock);
	if (full && (is_settled(full) || has_its_port(full)))
		return TC_ACT_UNSPEC;
	agreement = agreement_of_packet(skb);
	if (full && agreement.kind == AGREEMENT_POOL) {
		if (full->type == SOCK_DGRAM)
			remember_agreement(full, &agreement); /* connect() leaves that to its first packet */
		pool = agreement.pool;
		agreed_with = full;
		sender = bpf_sk_storage_get(&senders, full, 0, 0);
		speaker = full->type == SOCK_STREAM && (!sender || is_unspecified(sender->from)) ? SPEAKER_OLDER : SPEAKER_ANY;
	} else if (full && full->type != SOCK_RAW) {
		return TC_ACT_UNSPEC;
	}
	return own_packet(skb, pool, speaker, agreed_with);
}
LICENSE;
