// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The short way of IPv6 on an on-ramp: fast.bpf.c for the other family (family.h). Not attached: handed.h. */
#define FAMILY 6
#include "fast.bpf.c"
