// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Packets of IPv6: the very code of stray.bpf.c, compiled for the other family (family.h). */
#define FAMILY 6
#include "stray.bpf.c"
