/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The few things a BPF program needs beyond the kernel's UAPI headers: section and map macros, and the
 * helpers we call (their numbers come from <linux/bpf.h>). */
#pragma once

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/types.h>
#include <linux/udp.h>

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name
#define LICENSE char bpf_license[] SEC("license") = "Dual BSD/GPL"
#define INLINE static inline __attribute__((always_inline))
/* A function of its own: keeps what it has on the stack (512 bytes for all callers together) to its call. */
#define APART static __attribute__((noinline))
/* The same, and verified once, by itself, not anew for every state that a caller can be in. It takes the context,
 * numbers and pointers to whole structs, which it has to compare with 0, and returns a number. */
#define ALONE __attribute__((noinline))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define be16(x) __builtin_bswap16(x)
#define be32(x) __builtin_bswap32(x)
/* Makes the compiler use this very register from here on: the verifier knows bounds by register, and would not
 * recognise a pointer that is computed a second time. */
#define keep(pointer) asm volatile("" : "+r"(pointer))
#define copy(to, from, bytes) __builtin_memcpy(to, from, bytes)
#define zero_fill(to, bytes) __builtin_memset(to, 0, bytes)

enum tcp_socket { STATE_SYN_SENT = 2, STATE_TIME_WAIT = 6, STATE_CLOSE = 7, STATE_LISTEN = 10 }; /* struct bpf_sock.state */

#define HELPER(type, name, ...) \
	static type (*const bpf_##name)(__VA_ARGS__) __attribute__((unused)) = (void *)BPF_FUNC_##name
HELPER(void *, map_lookup_elem, void *map, const void *key);
HELPER(long, map_update_elem, void *map, const void *key, const void *value, __u64 flags);
HELPER(long, map_delete_elem, void *map, const void *key);
HELPER(__u32, get_prandom_u32, void);
HELPER(long, skb_store_bytes, void *skb, __u32 offset, const void *from, __u32 bytes, __u64 flags);
HELPER(long, l4_csum_replace, void *skb, __u32 offset, __u64 from, __u64 to, __u64 flags);
HELPER(long, clone_redirect, void *skb, __u32 ifindex, __u64 flags);
HELPER(long, redirect, __u32 ifindex, __u64 flags);
HELPER(long, skb_load_bytes, const void *skb, __u32 offset, void *to, __u32 bytes);
HELPER(__s64, csum_diff, __be32 *from, __u32 from_bytes, __be32 *to, __u32 to_bytes, __u32 seed);
HELPER(__s64, csum_update, void *skb, __u32 sum);
HELPER(long, skb_change_tail, void *skb, __u32 bytes, __u64 flags);
HELPER(long, skb_change_head, void *skb, __u32 bytes, __u64 flags);
HELPER(long, skb_pull_data, void *skb, __u32 bytes);
HELPER(long, skb_adjust_room, void *skb, __s32 bytes, __u32 mode, __u64 flags);
HELPER(long, fib_lookup, void *ctx, struct bpf_fib_lookup *params, int bytes, __u32 flags);
HELPER(struct bpf_sock *, sk_lookup_udp, void *ctx, struct bpf_sock_tuple *tuple, __u32 bytes, __u64 netns,
       __u64 flags);
HELPER(long, sk_release, void *sock);
HELPER(struct bpf_sock *, skc_lookup_tcp, void *ctx, struct bpf_sock_tuple *tuple, __u32 bytes, __u64 netns,
       __u64 flags);
HELPER(long, redirect_neigh, __u32 ifindex, struct bpf_redir_neigh *params, int bytes, __u64 flags);
HELPER(long, check_mtu, void *ctx, __u32 ifindex, __u32 *mtu, __s32 change, __u64 flags);
HELPER(__u64, ktime_get_coarse_ns, void);
HELPER(__u64, ktime_get_ns, void);
HELPER(long, for_each_map_elem, void *map, void *callback, void *context, __u64 flags);
HELPER(long, loop, __u32 count, void *callback, void *context, __u64 flags);
HELPER(__u64, xdp_get_buff_len, void *xdp);
HELPER(__u64, get_current_uid_gid, void);
HELPER(long, xdp_adjust_head, void *xdp, int bytes);
HELPER(long, tail_call, void *ctx, void *programs, __u32 index);
HELPER(__u64, get_current_ancestor_cgroup_id, int level);
HELPER(__u64, skb_cgroup_id, struct __sk_buff *skb);
HELPER(__u64, skb_ancestor_cgroup_id, struct __sk_buff *skb, int level);
HELPER(__u64, get_current_cgroup_id, void);
HELPER(__u32, get_smp_processor_id, void);
HELPER(__u64, get_netns_cookie, void *ctx);
HELPER(__u64, get_socket_cookie, void *ctx);
HELPER(void *, sk_storage_get, void *map, void *sock, void *value, __u64 flags);
HELPER(struct bpf_sock *, sk_fullsock, struct bpf_sock *sock);
HELPER(long, bind, struct bpf_sock_addr *ctx, void *address, int bytes);
HELPER(long, setsockopt, void *ctx, int level, int name, void *value, int bytes);
HELPER(long, set_retval, int value);
HELPER(long, probe_read_kernel_str, void *to, __u32 bytes, const void *from);
HELPER(void *, skc_to_tcp_timewait_sock, void *sock);
/* A function of the kernel (6.2): the pointer, as one to a struct of the kernel's that may be read. */
extern void *bpf_rdonly_cast(const void *pointer, __u32 type) __attribute__((section(".ksyms")));
/* A function of the kernel (6.2): what the kernel itself calls the packet, with all fields. */
extern void *bpf_cast_to_kern_ctx(void *context) __attribute__((section(".ksyms")));
/* Functions of the kernel (6.4): a loop that is verified once. */
extern int bpf_iter_num_new(struct bpf_iter_num *steps, int start, int end) __attribute__((section(".ksyms")));
extern int *bpf_iter_num_next(struct bpf_iter_num *steps) __attribute__((section(".ksyms")));
extern void bpf_iter_num_destroy(struct bpf_iter_num *steps) __attribute__((section(".ksyms")));
#define kernel_type(type) ((__u32)__builtin_btf_type_id(*(type *)0, 1))

struct bpf_map { /* the kernel's */
	__u32 max_entries;
} __attribute__((preserve_access_index));

