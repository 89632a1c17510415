// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Never loaded: the BTF of abi.h as it is for IPv6. */
#define FAMILY 6
#include "abi.bpf.c"
