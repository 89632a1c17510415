// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Return routing of IPv6 in XDP: director.bpf.c for the other family (family.h). Not attached: handed.h. */
#define FAMILY 6
#include "director.bpf.c"
