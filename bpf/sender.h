/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is remembered of a socket that sends without a port of its pool. */
#pragma once

#include "agreement.h"

#define SOCK_STREAM 1 /* struct bpf_sock.type */
#define SOCK_DGRAM 2
#define SOCK_RAW 3

struct sender { /* of a socket in an agreement */
	ip_address from; /* the source of the last packet that could begin a conversation: its own address */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct sender);
} senders SEC(".maps");
