/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which sockets of this host leave from a pool. A socket is in an agreement when its program is in a cgroup that is,
 * or below one; or when the agent put it in one itself (a socket that a program handed to it). User space writes both
 * maps; they are of both families. */
#pragma once

#include "abi.h"
#include "bpf.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, __u64); /* number of the cgroup: its inode */
	__type(value, struct agreement);
} agreements SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct agreement);
} agreed SEC(".maps");
