// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The same for IPv6: the very code of bind.bpf.c, compiled for the other family (family.h). */
#define FAMILY 6
#include "bind.bpf.c"
