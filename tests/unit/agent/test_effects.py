"""The order in which kernel and host are changed: what must never be the other way round."""

from __future__ import annotations

import os
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Address
from pathlib import Path

import pytest
from tests.unit.agent.fakes import EMPTY, SHARED, Calls, DataPath, Sockets, part

from softunicast.agent.effects import NodeEffects
from softunicast.agent.host import HostChanges
from softunicast.core.desired import AddressTable, KernelState, PoolSlices, SlotOwner
from softunicast.core.errors import HostError, KernelError
from softunicast.core.onramps import Tun
from softunicast.core.pools import Timers

HERE = AddressTable(2048, {1: SlotOwner("server1", 1, 99)})
STATE = replace(
    EMPTY,
    addresses={SHARED: HERE},
    pools={"gb": PoolSlices(Timers(), (part(1),))},
    onramps={"clients": "gb"},
)
SETTINGS = [
    f"net/ipv4/conf/{interface}/{key}"
    for interface in ("uplink", "clients", "late")
    for key in ("arp_ignore", "arp_announce", "forwarding")
]


class Node:
    """Effects on stand-ins that share one list of what was done."""

    def __init__(self, path: Path) -> None:
        self.done: list[str] = []
        self.calls = Calls(self.done)
        self.calls.settings = dict.fromkeys(SETTINGS, 0)
        self.datapath = DataPath(self.done)
        self.indices: dict[str, int] = {"uplink": 2, "clients": 3}
        self.host = HostChanges(path / "host.json", "boot", self.calls)
        self.effects = NodeEffects(
            self.datapath, self.host, Sockets(self.done), "uplink", "server1", self.index_of
        )

    def index_of(self, name: str) -> int | None:
        return 50 if name in self.calls.tuns else self.indices.get(name)

    def apply(self, wanted: KernelState) -> list[str]:
        self.done.clear()
        self.effects.apply(wanted)
        return list(self.done)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_taking_part(node: Node) -> None:
    done = node.apply(STATE)
    assert done.index("uplink/arp_ignore=1") < done.index("apply clients")
    assert done.index("clients/arp_ignore=1") < done.index("apply clients")
    # Forwarding without the program would let packets out untranslated.
    assert done.index("apply clients") < done.index("clients/forwarding=1") < done.index(f"add {SHARED}")
    assert "uplink/forwarding=1" not in done
    assert node.apply(STATE) == ["apply clients"]


def test_ipv6_is_forwarded_where_the_pool_has_some(node: Node) -> None:
    """An interface that forwards takes no router's advertisements: nobody pays for that who has no use of it."""
    setting, shared6 = "net/ipv6/conf/clients/forwarding", IPv6Address("2001:db8:64::10")
    node.calls.settings[setting] = 0
    node.apply(STATE)
    assert node.calls.settings[setting] == 0
    both = replace(
        STATE,
        addresses={**STATE.addresses, shared6: HERE},
        pools={"gb": replace(STATE.pools["gb"], families=frozenset({4, 6}))},
    )
    node.apply(both)
    assert node.calls.settings[setting] == 1
    assert node.calls.on_loopback == {SHARED, shared6}
    node.apply(STATE)
    assert node.calls.settings[setting] == 0
    assert node.calls.on_loopback == {SHARED}
    node.apply(both)
    node.effects.stop(both, [])
    assert set(node.calls.settings.values()) == {0}


def test_forwarding_ends_before_the_program_goes(node: Node) -> None:
    node.apply(STATE)
    assert node.apply(replace(STATE, onramps={})) == ["clients/forwarding=0", "apply "]


def test_what_others_broke_heals(node: Node) -> None:
    node.apply(STATE)
    node.calls.settings["net/ipv4/conf/clients/forwarding"] = 0
    node.calls.on_loopback.clear()
    assert node.apply(STATE) == ["apply clients", "clients/forwarding=1", f"add {SHARED}"]


def test_address_of_which_no_slice_is_here_any_more_goes_last(node: Node) -> None:
    node.apply(STATE)
    elsewhere = AddressTable(2048, {1: SlotOwner("server2", 2, 0)})
    assert node.apply(replace(STATE, addresses={SHARED: elsewhere})) == ["apply clients", f"remove {SHARED}"]


def test_onramp_that_is_not_there_waits(node: Node) -> None:
    wanted = replace(STATE, onramps={"clients": "gb", "late": "gb"})
    assert node.apply(wanted)[-3:] == ["apply clients", "clients/forwarding=1", f"add {SHARED}"]
    assert node.effects.missing_onramps == ("late",)
    node.indices["late"] = 9
    done = node.apply(wanted)
    assert done.index("apply clients,late") < done.index("late/forwarding=1")
    assert node.effects.missing_onramps == ()


def test_onramp_made_anew_under_its_name_is_attached_anew(node: Node) -> None:
    node.apply(STATE)
    node.indices["clients"] = 30
    node.calls.settings["net/ipv4/conf/clients/forwarding"] = 0
    assert node.apply(STATE) == ["apply ", "apply clients", "clients/forwarding=1"]


def test_letting_go(node: Node) -> None:
    node.apply(STATE)
    node.datapath.live = {part(1): 5}
    node.done.clear()
    stopped = node.effects.stop(STATE, [part(1), part(2)])
    assert stopped.let_go
    assert stopped.live == {part(1): 5, part(2): 0}
    assert stopped.errors == ()
    assert node.datapath.state.pools["gb"].slices == ()
    assert node.done[:6] == [
        "withdraw",  # while there is a table to tidy
        "apply clients",  # no new flows
        "count",  # nothing can come after this
        "clients/forwarding=0",
        f"remove {SHARED}",  # while the guard still watches
        "detach",
    ]
    assert set(node.calls.settings.values()) == {0}
    assert node.calls.on_loopback == set()


@pytest.mark.parametrize("step", ["apply", "count"])
def test_what_cannot_be_counted_is_not_clean(node: Node, step: str) -> None:
    node.apply(STATE)
    node.datapath.fails = {step}
    stopped = node.effects.stop(STATE, [part(1)])
    assert stopped.let_go
    assert stopped.live[part(1)] > 0
    assert [type(error) for error in stopped.errors] == [KernelError]
    assert set(node.calls.settings.values()) == {0}


def test_leases_stay_when_the_kernel_does_not_let_go(node: Node) -> None:
    node.apply(STATE)
    node.datapath.fails = {"detach"}
    stopped = node.effects.stop(STATE, [part(1)])
    assert not stopped.let_go
    assert node.calls.on_loopback == set()


def test_uplink_that_is_another_interface_now(node: Node) -> None:
    assert not node.effects.uplink_is_gone()
    node.indices["uplink"] = 5
    assert node.effects.uplink_is_gone()
    del node.indices["uplink"]
    assert node.effects.uplink_is_gone()


def test_an_apply_under_way_when_the_uplink_goes_brings_no_address_back(node: Node) -> None:
    node.apply(STATE)
    del node.indices["uplink"]
    node.effects.leave_addresses()
    node.apply(STATE)
    assert node.calls.on_loopback == set()


# -- TUN devices ---------------------------------------------------------------------------------------------

DEVICES = {"apps": Tun(IPv4Interface("10.9.0.1/24"))}
WITH_TUN = replace(STATE, onramps={"clients": "gb", "apps": "gb"})


def test_a_device_is_there_before_it_is_attached_and_gone_after(node: Node) -> None:
    node.calls.settings["net/ipv4/conf/apps/forwarding"] = 0
    node.effects.tuns = DEVICES
    done = node.apply(WITH_TUN)
    assert done.index("make apps") < done.index("apply apps,clients") < done.index("apps/forwarding=1")
    assert node.apply(WITH_TUN) == ["apply apps,clients"]
    node.effects.tuns = {}
    assert node.apply(STATE) == ["apps/forwarding=0", "apply clients", "remove apps"]


def test_a_clean_stop_removes_devices_last(node: Node) -> None:
    node.effects.tuns = DEVICES
    node.apply(WITH_TUN)
    node.done.clear()
    assert node.effects.stop(WITH_TUN, []).errors == ()
    assert node.done.index("detach") < node.done.index("remove apps")
    assert node.calls.tuns == {}


def test_a_device_that_cannot_be_made_holds_up_nothing_else(node: Node) -> None:
    """Above all not the deadlines. And nothing is attached to what is there under its name."""
    node.calls.make_tun("apps", DEVICES["apps"])
    node.effects.tuns = DEVICES
    with pytest.raises(HostError, match="there is an interface apps"):
        node.effects.apply(WITH_TUN)
    assert node.datapath.state == STATE
    assert node.calls.on_loopback == {SHARED}
    assert node.effects.missing_onramps == ("apps",)


def test_opening(node: Node) -> None:
    node.effects.tuns = DEVICES
    with pytest.raises(HostError, match="on-ramp apps is not ready; fix: ask again in a moment"):
        node.effects.open_tun("apps")
    node.apply(WITH_TUN)
    os.close(node.effects.open_tun("apps"))
    node.calls.tuns["apps"] = replace(node.calls.tuns["apps"], open=True)
    with pytest.raises(HostError, match="another program has on-ramp apps; fix: end it first"):
        node.effects.open_tun("apps")
