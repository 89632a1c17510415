// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* A cgroup is made, tracepoint cgroup_mkdir. A unit that is restarted and a container that is started again get a new cgroup in
 * the place of the one that was attached: it is in the same agreement from its beginning. The kernel asks here before
 * anybody can see the cgroup, so no process is ever in it without.
 *
 * User space writes `lasting`, and an entry of `agreements` with each. A place is a name in a cgroup, not a path: paths differ between namespaces. */
#include "agreement.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, struct cgroup_name);
	__type(value, struct lasting);
} lasting SEC(".maps");

struct kernfs_node {
	__u64 id;
	const char *name;
} __attribute__((preserve_access_index));

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
} __attribute__((preserve_access_index));

struct cgroup_root {
	int hierarchy_id;
} __attribute__((preserve_access_index));

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
	struct cgroup_root *root;
} __attribute__((preserve_access_index));

SEC("tp_btf/cgroup_mkdir")
int cgroup_remade(__u64 *context)
{
	struct cgroup *made = (void *)context[0];
	struct cgroup_subsys_state *parent = made->self.parent;
	struct cgroup_name place = {};
	struct agreement agreement = {.kind = AGREEMENT_POOL};
	struct lasting *known;
	__u64 number = made->kn->id, before;

	if (made->root->hierarchy_id || !parent) /* of version 1, whose numbers are others' */
		return 0;
	place.parent = parent->cgroup->kn->id;
	bpf_probe_read_kernel_str(place.name, sizeof(place.name), made->kn->name);
	known = bpf_map_lookup_elem(&lasting, &place);
	if (!known)
		return 0;
	before = known->cgroup;
	bpf_map_delete_elem(&agreements, &before); /* whose room this one gets, however full the table is */
	agreement.pool = known->pool;
	bpf_map_update_elem(&agreements, &number, &agreement, BPF_ANY);
	known->cgroup = number;
	return 0;
}

LICENSE;
