// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The last check before the wire, for IPv6: the very code of guard.bpf.c, compiled for the other family (family.h). */
#define FAMILY 6
#include "guard.bpf.c"
