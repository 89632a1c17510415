// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Frees expired claims of IPv6: the very code of sweep.bpf.c, compiled for the other family (family.h). */
#define FAMILY 6
#include "sweep.bpf.c"
