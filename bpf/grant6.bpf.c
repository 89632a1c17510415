// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The claims behind what users were granted, of IPv6: the code of grant.bpf.c, compiled for the other family (family.h). */
#define FAMILY 6
#include "grant.bpf.c"
