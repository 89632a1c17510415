"""libbpf.so.1 through cffi in ABI mode: declarations, loading, and translation of its errors.

Only this file knows C declarations. They are few on purpose; tests/bpf/test_libbpf.py compiles them against
the installed <bpf/bpf.h> and <bpf/libbpf.h> when those are there. Everything works with libbpf 1.1 (Debian 12).
"""

from __future__ import annotations

import errno as errno_names
import functools
import os
from typing import Any, Final

from cffi import FFI

from softunicast.core.errors import HostError, KernelError

DECLARATIONS: Final = """
struct bpf_object; struct bpf_map; struct bpf_program; struct btf;

struct bpf_object *bpf_object__open_file(const char *path, const void *opts);
int bpf_object__load(struct bpf_object *obj);
void bpf_object__close(struct bpf_object *obj);
struct bpf_map *bpf_object__next_map(const struct bpf_object *obj, const struct bpf_map *prev);
struct bpf_program *bpf_object__next_program(const struct bpf_object *obj, struct bpf_program *prev);

const char *bpf_map__name(const struct bpf_map *map);
int bpf_map__fd(const struct bpf_map *map);
int bpf_map__set_pin_path(struct bpf_map *map, const char *path);
int bpf_map__set_max_entries(struct bpf_map *map, uint32_t max_entries);
uint32_t bpf_map__max_entries(const struct bpf_map *map);
int bpf_map__type(const struct bpf_map *map);
uint32_t bpf_map__key_size(const struct bpf_map *map);
uint32_t bpf_map__value_size(const struct bpf_map *map);
uint32_t bpf_map__map_flags(const struct bpf_map *map);
int bpf_map__reuse_fd(struct bpf_map *map, int fd);

const char *bpf_program__name(const struct bpf_program *prog);
int bpf_program__fd(const struct bpf_program *prog);
int bpf_program__set_log_buf(struct bpf_program *prog, char *log_buf, size_t log_size);

struct bpf_link_create_opts { size_t sz; uint32_t flags; uint64_t rest[8]; };
int bpf_link_create(int prog_fd, int target_fd, int attach_type, const struct bpf_link_create_opts *opts);
int bpf_link_update(int link_fd, int new_prog_fd, const void *opts);
int bpf_link_detach(int link_fd);
int bpf_obj_pin(int fd, const char *pathname);
int bpf_obj_get(const char *pathname);

int bpf_map_lookup_elem(int fd, const void *key, void *value);
int bpf_map_update_elem(int fd, const void *key, const void *value, uint64_t flags);
int bpf_map_delete_elem(int fd, const void *key);
int bpf_map_get_next_key(int fd, const void *key, void *next_key);
int bpf_map_lookup_batch(int fd, void *in_batch, void *out_batch, void *keys, void *values, uint32_t *count,
                         const void *opts);
int bpf_map_update_batch(int fd, const void *keys, const void *values, uint32_t *count, const void *opts);

struct bpf_test_run_opts {
    size_t sz;
    const void *data_in;
    void *data_out;
    uint32_t data_size_in;
    uint32_t data_size_out;
    const void *ctx_in;
    void *ctx_out;
    uint32_t ctx_size_in;
    uint32_t ctx_size_out;
    uint32_t retval;
    int repeat;
    uint32_t duration;
    uint32_t flags;
    uint32_t cpu;
    uint32_t batch_size;
};
int bpf_prog_test_run_opts(int prog_fd, struct bpf_test_run_opts *opts);
int bpf_obj_get_info_by_fd(int bpf_fd, void *info, uint32_t *info_len);

struct btf *btf__parse(const char *path, void *btf_ext);
const void *btf__raw_data(const struct btf *btf, uint32_t *size);
void btf__free(struct btf *btf);

int libbpf_num_possible_cpus(void);
void *libbpf_set_print(void *fn);
int libbpf_probe_bpf_prog_type(int prog_type, const void *opts);
int libbpf_probe_bpf_map_type(int map_type, const void *opts);
int libbpf_probe_bpf_helper(int prog_type, int helper_id, const void *opts);
"""

ffi = FFI()
ffi.cdef(DECLARATIONS)

LIBRARY_ENV: Final = "SOFTUNICAST_LIBBPF"


@functools.cache
def load_library() -> Any:
    """The loaded library. HostError when it is not there; the environment can name another file."""
    name = os.environ.get(LIBRARY_ENV, "libbpf.so.1")
    try:
        library = ffi.dlopen(name)
    except OSError as error:
        raise HostError(
            f"{name} not found: BPF programs cannot be loaded", "apt-get install libbpf1"
        ) from error
    library.libbpf_set_print(ffi.NULL)
    return library


def check(result: int, doing: str, fix: str | None = None) -> int:
    """Returns a non-negative `result`; otherwise raises KernelError with the errno in words."""
    if result >= 0:
        return result
    raise kernel_error(-result if result < -1 else ffi.errno, doing, fix)


def kernel_error(errno: int, doing: str, fix: str | None = None) -> KernelError:
    """A KernelError for `errno`, with the usual fixes for missing privilege and memory."""
    name = errno_names.errorcode.get(errno, str(errno))
    if fix is None and errno in (errno_names.EPERM, errno_names.EACCES):
        fix = "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
    return KernelError(f"{doing}: {os.strerror(errno)} ({name})", errno, fix)
