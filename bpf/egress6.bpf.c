// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Translation of forwarded IPv6 packets: the very code of egress.bpf.c, compiled for the other family (family.h). */
#define FAMILY 6
#include "egress.bpf.c"
