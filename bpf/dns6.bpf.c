// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Lookups by IPv6: the very code of dns.bpf.c, compiled for the other family (family.h). */
#define FAMILY 6
#include "dns.bpf.c"
