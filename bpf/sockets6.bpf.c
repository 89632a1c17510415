// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Sockets of IPv6: the very code of sockets.bpf.c, compiled for the other family (family.h). */
#define FAMILY 6
#include "sockets.bpf.c"
