// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Return routing of IPv6 at tc: the very code of director_tc.bpf.c, compiled for the other family (family.h). */
#define FAMILY 6
#include "director_tc.bpf.c"
