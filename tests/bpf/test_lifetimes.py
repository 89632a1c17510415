"""How long a claim lives, by what was seen of its conversation, and who may keep it alive.

TCP as RFC 7857 section 2 draws it: opening until both sides have spoken, closing after both FINs or an RST,
back to established when the client goes on after an RST (which anybody may have forged).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.bpf.frames import FROM_WIRE, REMOTE, echo, end, local_end, tcp, udp
from tests.bpf.talk import Conversation
from tests.bpf.world import World, state

from softunicast.core.pools import Timers
from softunicast.kernel import abi

# Times here are in units of 100 s, so that it does not matter how long a busy machine takes for a test.
UNIT_S = 100
UNIT_NS = UNIT_S * 1_000_000_000
TIMERS = Timers(
    tcp_opening_s=100 * UNIT_S,
    tcp_established_s=1000 * UNIT_S,
    tcp_closing_s=50 * UNIT_S,
    udp_s=30 * UNIT_S,
    icmp_s=20 * UNIT_S,
)
LIFETIMES = {"opening": 100, "established": 1000, "closing": 50}


@pytest.fixture
def timed(world: World) -> World:
    world.reset(state(timers=TIMERS))
    return world


def claim(world: World) -> abi.Claim:
    (found,) = world.claims().values()
    return found


def remaining(world: World) -> int:
    """Until the claim expires."""
    left = (claim(world).expires_ns - time.monotonic_ns()) / UNIT_NS
    assert left == pytest.approx(round(left), abs=0.2)
    return round(left)


def shown(world: World) -> str:
    (_, (flow,)) = world.datapath.flows(1)
    assert flow.expires_in_s == pytest.approx(remaining(world) * UNIT_S, abs=0.2 * UNIT_S)
    return flow.state


def age(world: World, units: int) -> None:
    """Time goes by: the claim is that much nearer to its end, the flow to asking it."""
    now = claim(world)
    world.change_claims(
        expires_ns=now.expires_ns - units * UNIT_NS,
        refresh_in_ticks=max(0, now.refresh_in_ticks - units * UNIT_NS // abi.AbiLimit.TICK_NS),
    )
    for flow in world.flows().values():
        world.change_flows(refresh_ns=max(0, flow.refresh_ns - units * UNIT_NS))


class Talk(Conversation):
    """One TCP conversation, and the state it should be in."""

    def check(self, wanted: str) -> None:
        assert (shown(self.world), remaining(self.world)) == (wanted, LIFETIMES[wanted])


def test_opening_established_closing(timed: World) -> None:
    talk = Talk(timed)
    talk.check("opening")
    talk.back("SA")
    talk.check("opening")
    talk.out("A")
    talk.check("established")
    talk.out("FA")
    talk.check("established")  # half closed: the peer may go on for long
    talk.back("A")
    talk.check("established")
    talk.back("FA")
    talk.check("closing")
    talk.out("A")
    talk.check("closing")
    talk.out("S")  # the same ports again
    talk.check("opening")
    talk.back("SA")
    talk.out("A")
    talk.check("established")


def test_the_peer_closes_first(timed: World) -> None:
    talk = Talk(timed).established()
    talk.back("FA")
    talk.check("established")
    talk.out("FA")
    talk.check("closing")


def test_an_answer_is_not_enough(timed: World) -> None:
    """Nor are retransmitted SYNs: both sides must have spoken."""
    talk = Talk(timed)
    for _ in range(3):
        talk.out("S")
        talk.back("SA")
    talk.check("opening")


def test_a_refused_connection(timed: World) -> None:
    talk = Talk(timed)
    talk.back("RA")
    talk.check("closing")
    talk.out("S")  # tried again
    talk.check("opening")


def test_the_client_resets(timed: World) -> None:
    talk = Talk(timed).established()
    talk.out("R")
    talk.check("closing")


def test_a_reset_that_the_client_does_not_believe(timed: World) -> None:
    """RFC 7857 section 2.2: it shortens the claim's life, the client's next packet restores it."""
    talk = Talk(timed).established()
    talk.back("R")
    talk.check("closing")
    talk.back("PA")  # data from the peer proves nothing: it may be forged, too
    talk.check("closing")
    age(timed, 49)
    talk.out("PA")
    talk.check("established")
    talk.back("PA")
    talk.check("established")


def test_the_client_speaks_before_its_flow_would_ask(timed: World) -> None:
    """A flow asks its claim well before it can have expired; after an end, before every packet."""
    talk = Talk(timed).established()
    (flow,) = timed.flows().values()
    assert 0 < flow.refresh_ns - time.monotonic_ns() <= LIFETIMES["closing"] / 8 * UNIT_NS
    talk.back("R")
    talk.out("PA")
    talk.check("established")


def test_an_established_conversation_is_kept_by_either_side(timed: World) -> None:
    talk = Talk(timed).established()
    for speak in (talk.back, talk.out):
        age(timed, 900)
        assert remaining(timed) == 100
        speak("A")
        talk.check("established")


def test_not_every_packet_writes_to_the_claim(timed: World) -> None:
    """Only when an eighth of its time is gone: a download does not make two CPUs fight over one word."""
    talk = Talk(timed)
    talk.back("SA")
    talk.out("A")
    talk.back("A")
    age(timed, 5)
    before = timed.claims()
    talk.back("A")
    talk.out("A")
    assert timed.claims() == before
    age(timed, 125)
    talk.back("A")
    talk.check("established")


def test_an_opening_one_is_kept_by_the_client_alone(timed: World) -> None:
    talk = Talk(timed)
    age(timed, 40)
    talk.out("S")
    talk.check("opening")


def test_after_its_end_the_flow_is_gone(timed: World) -> None:
    talk = Talk(timed).established()
    age(timed, 1001)
    assert timed.out(tcp(flags="PA")).reason == "no_flow"
    assert timed.back(tcp(REMOTE, talk.local, "A", macs=FROM_WIRE)).verdict == "next"


@pytest.mark.parametrize(("protocol", "lifetime"), [("udp", 30), ("echo", 20)])
def test_others_are_kept_by_the_client_alone(timed: World, protocol: str, lifetime: int) -> None:
    """RFC 4787 REQ-5 and 6, RFC 5508 REQ-2. A flow asks when an eighth of the time is gone, not at every packet."""
    question = udp() if protocol == "udp" else echo()
    local = local_end(timed.out(question).frame)
    port = end(local)[1]
    answer = (
        udp(REMOTE, local, macs=FROM_WIRE)
        if protocol == "udp"
        else echo(REMOTE, local, port, True, macs=FROM_WIRE)
    )
    assert remaining(timed) == lifetime
    age(timed, 1)
    assert timed.out(question).outcome == "out"
    assert remaining(timed) == lifetime - 1
    age(timed, 9)
    assert timed.back(answer).outcome == "in"
    assert remaining(timed) == lifetime - 10
    assert timed.out(question).outcome == "out"
    assert remaining(timed) == lifetime
    age(timed, lifetime + 1)
    assert timed.back(answer).verdict == "next"
    assert "new_flow" in timed.out(question).counted


@dataclass
class Model:
    """The same rules, written down once more and more slowly."""

    out: bool = False
    back: bool = False
    fin_out: bool = False
    fin_back: bool = False
    reset: bool = False

    def client(self, flags: str) -> None:
        if "R" in flags:
            self.reset = True
        elif "S" in flags:
            if self.reset or self.fin_out or self.fin_back:
                self.out = self.back = self.fin_out = self.fin_back = self.reset = False
        else:
            self.reset = False
            self.out = True
            self.fin_out |= "F" in flags

    def peer(self, flags: str) -> None:
        if "R" in flags:
            self.reset |= self.back or "A" in flags
        else:
            self.back = True
            self.fin_back |= "F" in flags

    @property
    def state(self) -> str:
        if self.reset or (self.fin_out and self.fin_back):
            return "closing"
        return "established" if self.out and self.back else "opening"


FLAGS = st.sampled_from(["S", "SA", "A", "PA", "FA", "F", "R", "RA"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.booleans(), FLAGS), max_size=12))
def test_any_order_of_packets(world: World, packets: list[tuple[bool, str]]) -> None:
    world.reset(state(timers=TIMERS))
    talk, model = Talk(world), Model()
    for from_client, flags in packets:
        world.change_flows(refresh_ns=0)  # as if time had passed: the flow asks
        if from_client:
            talk.out(flags)
            model.client(flags)
        else:
            talk.back(flags)
            model.peer(flags)
        talk.check(model.state)
