"""The C declarations of kernel/libbpf.py against the real headers: compiled, so that a wrong number, width or sign
of a parameter, a wrong result or a moved field cannot stay unseen. Needs <bpf/bpf.h> (libbpf-dev); the compiler is
the one that builds the BPF objects.
"""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest

from softunicast.core.errors import HostError, KernelError
from softunicast.kernel import libbpf

HEADERS = Path("/usr/include/bpf")
PROTOTYPE = re.compile(r"^(?!struct \w+ \{)([\w ]+?[ *]+)(\w+)\(([^)]*)\);", re.MULTILINE)
STRUCTS = ("bpf_link_create_opts", "bpf_test_run_opts")

# Two functions are alike when results and parameters agree in being pointers, in width and in sign. An enum is an int.
ALIKE = """
#include <stddef.h>
#include <stdint.h>
extern "C" {
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
}
template <class T> struct kind {
    static constexpr int value = __is_enum(T) ? sizeof(int) * 2 + 1 : sizeof(T) * 2 + (T(-1) < T(0));
};
template <class T> struct kind<T *> { static constexpr int value = -1; };
template <> struct kind<void> { static constexpr int value = -2; };
template <class...> struct list {};
template <class, class> struct same { static constexpr bool value = false; };
template <> struct same<list<>, list<>> { static constexpr bool value = true; };
template <class A, class... P, class B, class... Q> struct same<list<A, P...>, list<B, Q...>> {
    static constexpr bool value = kind<A>::value == kind<B>::value && same<list<P...>, list<Q...>>::value;
};
template <class, class> struct alike;
template <class A, class... P, class B, class... Q> struct alike<A(P...), B(Q...)>
    : same<list<A, P...>, list<B, Q...>> {};
"""


def checks(declarations: str) -> str:
    """A C++ file that compiles when the declarations agree with the headers."""
    found = PROTOTYPE.findall(declarations)
    lines = [
        f'static_assert(alike<{result.strip()}({parameters}), decltype({name})>::value, "{name}");'
        for result, name, parameters in found
    ]
    for struct in STRUCTS:
        for name, field in libbpf.ffi.typeof(f"struct {struct}").fields:
            if name != "rest":  # zeros for what newer versions add
                lines.append(
                    f"static_assert(offsetof({struct}, {name}) == {field.offset} && "
                    f'sizeof((({struct} *)0)->{name}) == {libbpf.ffi.sizeof(field.type)}, "{struct}.{name}");'
                )
    return "\n".join([ALIKE, *lines, ""])


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    """A folder to include from that has nothing else of the system's."""
    if not (HEADERS / "libbpf.h").exists():
        pytest.skip(f"missing: {HEADERS}/libbpf.h; fix: apt-get install libbpf-dev")
    folder = tmp_path / "include"
    folder.mkdir()
    (folder / "bpf").symlink_to(HEADERS)
    return folder


def compiler_says(headers: Path, text: str) -> str:
    source = headers.parent / "checks.cpp"
    source.write_text(text)
    compiler = [sys.executable, "-m", "ziglang", "cc", "-x", "c++", "-nostdinc++", "-std=c++17"]
    command = [*compiler, "-I", str(headers), "-c", str(source), "-o", str(source.with_suffix(".o"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr


def test_declarations_agree_with_the_headers(headers: Path) -> None:
    assert compiler_says(headers, checks(libbpf.DECLARATIONS)) == ""


@pytest.mark.parametrize(
    ("right", "wrong", "name"),
    [
        ("uint32_t max_entries);", "uint64_t max_entries);", "bpf_map__set_max_entries"),
        ("int bpf_map__fd(", "void *bpf_map__fd(", "bpf_map__fd"),
        (
            "int bpf_link_detach(int link_fd);",
            "int bpf_link_detach(int link_fd, int flags);",
            "bpf_link_detach",
        ),
        ("int bpf_obj_get(const char *pathname)", "int bpf_obj_get(unsigned int pathname)", "bpf_obj_get"),
    ],
)
def test_a_wrong_declaration_is_noticed(headers: Path, right: str, wrong: str, name: str) -> None:
    assert right in libbpf.DECLARATIONS
    said = compiler_says(headers, checks(libbpf.DECLARATIONS.replace(right, wrong)))
    assert re.findall(r"static assertion failed[^\n]*: (\w+)", said) == [name]


def test_every_function_is_in_the_library() -> None:
    """Of the version that is installed here; libbpf 1.1 is what Debian 12 has."""
    library = libbpf.load_library()
    names = [name for _, name, _ in PROTOTYPE.findall(libbpf.DECLARATIONS)]
    assert len(names) > 30
    for name in names:
        assert getattr(library, name), name


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(libbpf.LIBRARY_ENV, "libbpf.so.999")
    libbpf.load_library.cache_clear()
    try:
        with pytest.raises(HostError, match=r"libbpf.so.999.*; fix: apt-get install libbpf1"):
            libbpf.load_library()
    finally:
        libbpf.load_library.cache_clear()


def test_errors_in_words() -> None:
    assert libbpf.check(7, "doing") == 7
    with pytest.raises(KernelError, match=r"^doing: No space left on device \(ENOSPC\)$") as raised:
        libbpf.check(-errno.ENOSPC, "doing")
    assert raised.value.errno == errno.ENOSPC
    with pytest.raises(KernelError, match=r"Operation not permitted \(EPERM\); fix: run as root"):
        raise libbpf.kernel_error(errno.EPERM, "doing")
    with pytest.raises(KernelError, match=r"fix: do that$"):
        raise libbpf.kernel_error(errno.EPERM, "doing", "do that")
    with pytest.raises(KernelError, match=r"\(ENOENT\)"):
        libbpf.check(libbpf.load_library().bpf_obj_get(b"/nowhere/at/all"), "opening")
