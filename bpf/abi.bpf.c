// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Never loaded: carries the BTF of everything in abi.h, from which kernel/abi.py is generated. */
#include "abi.h"
#include "bpf.h"

const struct {
	enum reason reason;
	enum traffic traffic;
	enum hook hook;
	enum handed handed;
	enum handed_tc handed_tc;
	enum server_kind server_kind;
	enum tcp_seen tcp_seen;
	enum behaviour behaviour;
	struct settings settings;
	struct block_key block_key;
	struct group group;
	struct group_line group_line;
	struct address_line address_line;
	struct owner_line owner_line;
	struct slot slot;
	struct server server;
	struct hop hop;
	struct path path;
	struct pool_slice pool_slice;
	struct pool pool;
	struct pool_dns pool_dns;
	struct source source;
	struct onramp onramp;
	struct exempt_key exempt_key;
	enum agreement_kind agreement_kind;
	struct agreement agreement;
	struct cgroup_name cgroup_name;
	struct lasting lasting;
	struct grant_key grant_key;
	struct grant grant;
	enum grant_step grant_step;
	struct flow_key flow_key;
	struct flow flow;
	struct claim_key claim_key;
	struct claim claim;
	struct client_key client_key;
	struct client client;
	struct datagram_key datagram_key;
	struct datagram datagram;
	struct sample sample;
	struct drop drop;
	struct sweep sweep;
	struct sweeping sweeping;
	struct granting granting;
	struct usage usage;
	struct usage_cell usage_cell;
} abi SEC(".rodata.abi") = {};

/* Constants that user space needs travel as enumerators. */
const enum abi_limit {
	LIMIT_ABI_VERSION = ABI_VERSION,
	LIMIT_NAME_BYTES = NAME_BYTES,
	LIMIT_POOL_SLICES_MAX = POOL_SLICES_MAX,
	LIMIT_LINE_GROUPS = LINE_GROUPS,
	LIMIT_LINE_ADDRESSES = LINE_ADDRESSES,
	LIMIT_LINE_OWNERS = LINE_OWNERS,
	LIMIT_GROUP_BIT = GROUP_BIT,
	LIMIT_GROUP_TRIES = GROUP_TRIES,
	LIMIT_TICK_NS = TICK_NS,
	LIMIT_ONRAMP_SOURCES_MAX = ONRAMP_SOURCES_MAX,
	LIMIT_RESOLVERS_MAX = RESOLVERS_MAX,
} abi_limit SEC(".rodata.abi") = LIMIT_ABI_VERSION;
LICENSE;
