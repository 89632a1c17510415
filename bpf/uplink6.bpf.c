// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Translation of this host's own IPv6 packets: the very code of uplink.bpf.c, compiled for the other family (family.h). */
#define FAMILY 6
#include "uplink.bpf.c"
