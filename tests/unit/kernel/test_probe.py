"""What the probe says of this kernel, of one without a feature (simulated), and of one it cannot ask."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from softunicast.core.errors import HostError, UnknownNameError
from softunicast.kernel import probe
from softunicast.kernel.probe import Feature

# Helpers older than anything we would meet: no probe asks for them.
BASIC_HELPERS = {
    "bpf_map_lookup_elem",
    "bpf_map_update_elem",
    "bpf_map_delete_elem",
    "bpf_get_prandom_u32",
    "bpf_get_smp_processor_id",
    "bpf_ktime_get_ns",
    "bpf_skb_store_bytes",
    "bpf_skb_load_bytes",
    "bpf_skb_pull_data",
    "bpf_l4_csum_replace",
    "bpf_csum_diff",
    "bpf_csum_update",
    "bpf_redirect",
    "bpf_tail_call",
    "bpf_sk_release",  # came with bpf_sk_lookup_udp
}
BPF_HEADER = Path(__file__).parents[3] / "bpf" / "bpf.h"


@pytest.fixture
def may_load() -> None:
    """For tests of this very kernel."""
    if not probe.may_load():
        pytest.skip(f"not allowed to load BPF programs: {probe.PERMISSION_FIX}")


def named(features: tuple[Feature, ...]) -> dict[str, Feature]:
    return {feature.name: feature for feature in features}


def what_this_thread_has() -> tuple[set[str], Path]:
    descriptors = {entry.name for entry in Path("/proc/self/fd").iterdir()}
    return descriptors, Path("/proc/thread-self/ns/net").readlink()


def test_every_helper_the_data_path_calls_is_probed() -> None:
    declared = {f"bpf_{name}" for name in re.findall(r"^HELPER\([^,]*, (\w+),", BPF_HEADER.read_text(), re.M)}
    assert "bpf_fib_lookup" in declared
    probed = {name for name in named(probe.features()) if name.startswith("bpf_")}
    assert declared - BASIC_HELPERS == probed


@pytest.mark.usefixtures("may_load")
def test_this_kernel_has_what_the_data_path_needs() -> None:
    missing = {feature.name: feature.have for feature in probe.features() if not feature.have}
    assert missing == {}
    probe.require()


@pytest.mark.usefixtures("may_load")
def test_probing_leaves_nothing_behind() -> None:
    before = what_this_thread_has()
    probe.features()
    assert what_this_thread_has() == before


@pytest.mark.usefixtures("may_load")
def test_a_kernel_that_does_not_know_the_thing_has_it_not() -> None:
    assert probe._have_helper(probe._SCHED_CLS, 4095)() is False
    with pytest.raises(OSError, match="Invalid argument"), probe._loaded(4095):
        pass
    with probe._loaded(probe._SCHED_CLS) as program:
        assert probe._ask(lambda: probe._attaches(program, 4095, 0), True) is False


@pytest.mark.parametrize(
    ("number", "answer"),
    [(errno.EINVAL, False), (524, False), (errno.EPERM, None), (errno.ENOMEM, None), (errno.EMFILE, None)],
)
def test_only_errors_that_mean_unknown_count_as_have_not(number: int, answer: bool | None) -> None:
    def ask() -> bool:
        raise OSError(number, os.strerror(number))

    assert probe._ask(ask, True) is answer


def test_without_privilege_most_answers_are_unknown_and_require_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "may_load", lambda: False)
    found = named(probe.features())
    assert found["tcx"].have is None
    assert found["btf"].have is probe.BTF_VMLINUX.exists()
    with pytest.raises(HostError, match="not allowed to load BPF programs; fix: run as root"):
        probe.require()


def test_a_missing_feature_is_named_with_its_version_and_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(probe.WITHOUT_ENV, "tcx, bpf_loop")
    with pytest.raises(HostError) as raised:
        probe.require()
    assert raised.value.exit_code == 3
    text = str(raised.value)
    assert "lacks tcx (since 6.6, for egress and the guard), bpf_loop (since 5.17," in text
    assert text.endswith("fix: boot Linux 6.6 or newer, built with CONFIG_NET_XGRESS")
    assert "\n" not in text


def test_a_feature_nothing_needs_yet_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "may_load", lambda: True)
    monkeypatch.setattr(probe, "_ask", lambda ask, permitted: True)
    monkeypatch.setenv(probe.WITHOUT_ENV, "cgroup2")
    probe.require()
    with pytest.raises(HostError, match="lacks cgroup2"):
        probe.require(["cgroup2"])


def test_unknown_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match="no kernel feature 'warp'; fix: name some of: btf,"):
        probe.features(["warp"])
    monkeypatch.setenv(probe.WITHOUT_ENV, "warp")
    with pytest.raises(UnknownNameError, match="warp"):
        probe.require(["btf"])


def test_a_missing_libbpf_is_one_error_with_its_fix() -> None:
    program = "from softunicast.kernel import probe; probe.require()"
    environment = {**os.environ, "SOFTUNICAST_LIBBPF": "/nonexistent/libbpf.so.1"}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "HostError" in ended.stderr
    assert "apt-get install libbpf1" in ended.stderr.splitlines()[-1]


@pytest.mark.usefixtures("may_load")
def test_a_hook_of_cgroups_that_the_kernel_does_not_know() -> None:
    assert probe._ask(probe._have_cgroup_hook(18, (10, 11)), True) is True
    assert probe._ask(probe._have_cgroup_hook(18, (10, 3)), True) is False  # no hook of this kind of program
    assert probe._ask(probe._have_cgroup_hook(18, (10, 250)), True) is False
    assert probe._ask(probe._have_cgroup_hook(18, (10, 11)), False) is None
