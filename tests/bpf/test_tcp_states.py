"""TCP followed by its numbers: which RST and FIN count, and when a port is used again early.

An RST is believed as RFC 5961 section 3.2 has its receiver do it, as far as somebody in the middle can know; what
is not believed is passed on all the same, but moves nothing. Ports are used again before their claim ends
only when all are taken, and only those of conversations that are over and have been silent for a moment.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.bpf.frames import FROM_WIRE, REMOTE, tcp
from tests.bpf.talk import NUMBERS, Conversation
from tests.bpf.world import UPLINK, World, state

from softunicast.core.pools import Timers
from softunicast.kernel import abi

TIMERS = Timers(tcp_opening_s=100, tcp_established_s=1000, tcp_closing_s=50)
NS = 1_000_000_000
STEP = 1 << 24  # as in bpf/claim.h
SILENT_S = 2
CLOSED = "closing"


@pytest.fixture
def timed(world: World) -> World:
    world.reset(state(timers=TIMERS))
    return world


def shown(world: World) -> str:
    (_, (flow,)) = world.datapath.flows(1)
    return flow.state


def test_simultaneous_open(timed: World) -> None:
    """RFC 5382 REQ-2 a: both send a SYN, both answer the other's."""
    talk = Conversation(timed)
    assert talk.back("S").frame[47] == 0x02
    client = talk.client - 1  # its SYN/ACK repeats its number
    assert talk.forged_out("SA", client, acknowledgement=talk.peer).outcome == "out"
    talk.back("SA")
    assert shown(timed) == "opening"
    talk.out("PA", b"hello")
    talk.back("A")
    assert shown(timed) == "established"
    talk.back("R")
    assert shown(timed) == CLOSED


@pytest.mark.parametrize("first", [(0, 0), (1, NUMBERS - 1), (NUMBERS - 1, 1), (1 << 31, (1 << 31) - 1)])
def test_a_whole_conversation_at_any_numbers(timed: World, first: tuple[int, int]) -> None:
    for end in ("client fin", "peer fin", "client rst", "peer rst"):
        timed.reset(state(timers=TIMERS))
        talk = Conversation(timed, first=first).established()
        for _ in range(4):
            talk.out("PA", b"x" * 1400)
            talk.back("PA", b"y" * 1400)
        assert shown(timed) == "established"
        if end.endswith("rst"):
            (talk.out if end.startswith("client") else talk.back)("R")
        else:
            order = (talk.out, talk.back) if end.startswith("client") else (talk.back, talk.out)
            for speak in order:
                assert shown(timed) == "established"
                speak("FA")
        assert shown(timed) == CLOSED


def test_a_refusal_must_acknowledge_the_syn(timed: World) -> None:
    talk = Conversation(timed)
    for flags, acknowledgement in (("RA", talk.client - 1), ("RA", talk.client + 1), ("R", talk.client)):
        assert talk.forged_back(flags, 0, acknowledgement=acknowledgement).outcome == "in"
        assert shown(timed) == "opening"
    talk.back("RA")
    assert shown(timed) == CLOSED


def test_a_syn_out_of_nowhere_moves_no_numbers(timed: World) -> None:
    """Anybody may forge one; if it set the numbers, an RST that fits them would follow."""
    talk = Conversation(timed).established()
    before = numbers(timed)
    for sequence in (talk.peer + (1 << 30), talk.peer - (1 << 30), 0):
        talk.forged_back("S", sequence)
        talk.forged_back("SA", sequence, acknowledgement=talk.client - 1)
        talk.forged_back("SF", sequence)
        talk.forged_back("R", sequence + 1)
        assert numbers(timed) == before
        assert shown(timed) == "established"


def test_a_fin_that_is_not_the_end_of_what_was_sent(timed: World) -> None:
    talk = Conversation(timed).established()
    talk.out("FA")
    for sequence in (talk.peer - 5, talk.peer + STEP, talk.peer + (1 << 31), talk.peer - (1 << 30)):
        talk.forged_back("FA", sequence, acknowledgement=talk.client)
        assert shown(timed) == "established"
    talk.back("FA")
    assert shown(timed) == CLOSED


def numbers(world: World) -> tuple[int, int, int, int]:
    """The client's acknowledged and sent, the peer's."""
    (claim,), (flow,) = world.claims().values(), world.flows().values()
    return flow.acknowledged, flow.sent, claim.acknowledged, claim.sent


@dataclass
class Side:
    """What one end of an established conversation has said, as the rules of bpf/claim.h see it. The numbers are
    counted from where they begin, and do not wrap."""

    acknowledged: int
    sent: int

    def says(self, end: int, acknowledged: int | None) -> None:
        if 0 <= end - self.sent < STEP:
            self.sent = end
        if acknowledged is not None and 0 <= acknowledged - self.acknowledged < STEP:
            self.acknowledged = acknowledged


def believed(number: int, receiver: Side, sender: Side) -> bool:
    return receiver.acknowledged <= number < receiver.acknowledged + STEP and number <= sender.sent


NEAR = st.one_of(
    st.integers(-4000, 4000),
    st.integers(-3, 3).flatmap(lambda near: st.sampled_from([near + STEP, near - STEP, near + STEP // 2])),
    st.integers(-(1 << 29), 1 << 29),
)
SEGMENTS = st.lists(
    st.tuples(st.sampled_from(["out", "back"]), NEAR, st.integers(0, 1400), st.none() | NEAR), max_size=6
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(st.integers(0, NUMBERS - 1), st.integers(0, NUMBERS - 1)),
    SEGMENTS,
    st.lists(st.tuples(st.sampled_from(["out", "back"]), NEAR), min_size=1, max_size=6),
)
def test_resets_against_a_model(
    module_world: World,
    first: tuple[int, int],
    segments: list[tuple[str, int, int, int | None]],
    resets: list[tuple[str, int]],
) -> None:
    """Any segments, honest or forged, then RSTs of either side: exactly those that the model believes end it."""
    module_world.reset(state(timers=TIMERS))
    talk = Conversation(module_world, first=first).established()
    zero = {"out": talk.client, "back": talk.peer}  # all is acknowledged so far: the model counts from here
    sides = {"out": Side(0, 0), "back": Side(0, 0)}
    send = {"out": talk.forged_out, "back": talk.forged_back}
    other = {"out": "back", "back": "out"}
    for side, at, size, acknowledged in segments:
        mine, theirs = zero[side], zero[other[side]]
        sides[side].says(at + size, acknowledged)
        flags = "P" if acknowledged is None else "PA"
        ran = send[side](flags, mine + at, b"x" * size, theirs + (acknowledged or 0))
        assert ran.outcome == ("out" if side == "out" else "in")
    for side, at in resets:
        wanted = believed(at, sides[other[side]], sides[side])
        assert send[side]("R", zero[side] + at).outcome
        assert shown(module_world) == (CLOSED if wanted else "established"), (side, at, sides)
        if wanted:
            break


@pytest.mark.parametrize("side", ["out", "back"])
def test_forged_data_opens_no_more_than_a_window(timed: World, side: str) -> None:
    """Who guessed right once can go on from there; an RST is still believed within a window of what its receiver has
    acknowledged, and not beyond."""
    for distance, believed_ in ((STEP, False), (STEP + 5, False), (2 * STEP, False), (STEP - 1, True)):
        timed.reset(state(timers=TIMERS))
        talk = Conversation(timed, first=(NUMBERS - 500, NUMBERS - 700)).established()
        forge, start = (talk.forged_out, talk.client) if side == "out" else (talk.forged_back, talk.peer)
        for step in range(1, 4):
            forge("P", start + step * (STEP - 1))
        forge("R", start + distance)
        assert shown(timed) == (CLOSED if believed_ else "established")


def test_what_a_blind_forger_can_do(timed: World) -> None:
    """Who does not see the numbers hits a plausible one once in 256 tries, whatever was forged before."""
    generator = random.Random(1)
    talk = Conversation(timed, first=(1 << 30, 3 << 30)).established()
    peer = talk.peer
    for _ in range(1000):  # data somewhere, to move the window about
        timed.run("egress_in", blind(talk, "PA", generator), UPLINK)
    acknowledged, _, _, sent = numbers(timed)
    assert (sent - peer) % NUMBERS < NUMBERS // 2
    ended, tries = 0, 500
    for _ in range(tries):
        timed.run("egress_in", blind(talk, "R", generator), UPLINK)
        if shown(timed) == CLOSED:
            ended += 1
            talk.out("A")  # the client goes on, and so does the conversation
            assert shown(timed) == "established"
    assert ended <= 4 * tries * STEP // NUMBERS
    assert numbers(timed)[0] == acknowledged


def blind(talk: Conversation, flags: str, generator: random.Random) -> bytes:
    return tcp(REMOTE, talk.local, flags, macs=FROM_WIRE, sequence=generator.randrange(NUMBERS))


# -- early reuse

SLOTS = 16


@pytest.fixture
def small(world: World) -> World:
    world.reset(state(timers=TIMERS, ports=SLOTS))
    return world


def full(world: World) -> list[Conversation]:
    """As many established conversations as there are ports."""
    talks = [Conversation(world, f"10.0.0.2:{41000 + n}").established() for n in range(SLOTS)]
    assert world.out(tcp()).reason == "slice_full"
    return talks


def silent(world: World, seconds: float) -> None:
    """Nobody has said anything for that long: every claim is that much nearer to its end."""
    for key, claim in world.claims().items():
        gone = claim._replace(expires_ns=claim.expires_ns - int(seconds * NS))
        world.datapath.map("claims").set(key.pack(), gone.pack())
    world.forget_exhausted()


ENDS = {
    "both fins": (("out", "FA"), ("back", "FA"), ("out", "A")),
    "both fins, the peer's first": (("back", "FA"), ("out", "FA"), ("back", "A")),
    "the client's rst": (("out", "R"),),
    "the peer's rst": (("back", "R"),),
}
NOT_ENDS = {
    "nothing": (),
    "the client's fin": (("out", "FA"), ("back", "A")),
    "the peer's fin": (("back", "FA"), ("out", "A")),
    "an rst, and the client goes on": (("back", "R"), ("out", "A")),
    "an rst of the client, and it goes on": (("out", "R"), ("out", "A")),
}


def play(talk: Conversation, packets: tuple[tuple[str, str], ...]) -> None:
    for side, flags in packets:
        (talk.out if side == "out" else talk.back)(flags)


@pytest.mark.parametrize("end", tuple(ENDS))
def test_an_ended_conversations_port_is_used_again(small: World, end: str) -> None:
    """RFC 6888 REQ-8 a: when all others are taken, and a moment after the end."""
    talks = full(small)
    play(talks[5], ENDS[end])
    assert small.out(tcp()).reason == "slice_full"
    silent(small, SILENT_S - 0.5)
    assert small.out(tcp()).reason == "slice_full"
    silent(small, 0.6)
    ran = small.out(tcp())
    assert dict(ran.counted) == {"out": 1, "new_flow": 1, "reused": 1}
    assert Conversation(small).local == talks[5].local
    assert small.out(tcp("10.0.0.2:50000")).reason == "slice_full"  # there was one
    # The conversation before is over for good: its packets are nobody's.
    assert small.out(tcp(talks[5].source, flags="A")).reason == "no_flow"
    assert len(small.claims()) == SLOTS


@pytest.mark.parametrize("end", tuple(NOT_ENDS))
def test_a_live_conversations_port_is_never_used_again(small: World, end: str) -> None:
    talks = full(small)
    for talk in talks:
        play(talk, NOT_ENDS[end])
    for _ in range(3):
        silent(small, SILENT_S * 5)
        assert small.out(tcp()).reason == "slice_full"
    for talk in talks:
        assert small.out(tcp(talk.source, flags="A")).outcome == "out"


@pytest.mark.parametrize("speaker", ["out", "back"])
@pytest.mark.parametrize("end", ["both fins", "both fins, the peer's first"])
def test_silence_begins_with_the_last_packet(small: World, end: str, speaker: str) -> None:
    """Of either side: bytes before the FIN may still be on their way, again."""
    talk = full(small)[3]
    play(talk, ENDS[end])
    for _ in range(4):
        silent(small, SILENT_S - 0.2)
        play(talk, ((speaker, "A"),))
        assert small.out(tcp()).reason == "slice_full"
    silent(small, SILENT_S + 0.1)
    assert "reused" in small.out(tcp()).counted


def test_not_while_others_are_free(small: World) -> None:
    """An ended conversation keeps its port as long as there is another."""
    first = Conversation(small, "10.0.0.9:1").established()
    play(first, ENDS["both fins"])
    silent(small, 10)
    taken = {first.local}
    for n in range(SLOTS - 1):
        talk = Conversation(small, f"10.0.0.2:{41000 + n}")
        assert "reused" not in talk.opening.counted
        taken.add(talk.local)
    assert len(taken) == SLOTS
    assert Conversation(small, "10.0.0.3:1").local == first.local


def test_other_destinations_are_not_in_the_way(small: World) -> None:
    talks = full(small)
    play(talks[0], ENDS["both fins"])
    silent(small, 10)
    ran = small.out(tcp(destination="203.0.113.2:443"))
    assert dict(ran.counted) == {"out": 1, "new_flow": 1}


def test_what_was_known_of_the_conversation_before_is_forgotten(small: World) -> None:
    """Not its state, nor its numbers: an RST that would have fitted them ends nothing."""
    before = full(small)[7]
    play(before, ENDS["the client's rst"])
    silent(small, 3)
    talk = Conversation(small, first=(1 << 31, 1 << 29))
    assert talk.local == before.local
    key = next(key for key, claim in small.claims().items() if claim.state == 0)
    assert small.claims()[key].since_ticks > (time.monotonic_ns() - 10 * NS) // abi.AbiLimit.TICK_NS
    talk.established()
    assert before.forged_back("R", before.peer).outcome == "in"
    assert small.claims()[key].state & abi.TcpSeen.RST == 0
