"""The programs that sockets of this host meet: attached once, to the root of cgroup2, for every program of the host;
they leave alone what is in another network namespace (by its cookie), so several servers can be on one host. And the
one that every new cgroup meets.

Which cgroups are excused is written here; which are in agreements, others write (agreements.py).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from softunicast.core.config_sockets import SocketsConfig
from softunicast.core.errors import HostError
from softunicast.kernel import abi, cgroup_tree, cgroups, strays
from softunicast.kernel.agreements import TAG, Agreements, begin, new_tag
from softunicast.kernel.maps import Map
from softunicast.kernel.objects import BpfObject, Link
from softunicast.kernel.pins import link_of

# Object, program, attach type (enum bpf_attach_type): in the order in which they go. A socket must not be able to claim
# before its closing is noticed.
HOOKS: Final = (
    ("sockets", "socket_release", 34),
    ("sockets6", "socket_release6", 34),
    ("sockets", "socket_connect", 10),
    ("sockets", "connect_mapped", 11),
    ("sockets6", "socket_connect6", 11),
    ("sockets", "socket_bind", 8),
    ("sockets", "bind_mapped", 9),
    ("sockets6", "socket_bind6", 9),
    ("sendmsg", "socket_send", 14),
    ("sendmsg6", "socket_send6", 15),
)
# Programs are told that they talk to whom they asked: only where a pool has resolvers, because they run for every
# datagram that the host receives.
ANSWERS: Final = (
    ("dns", "socket_receive", 19),
    ("dns", "receive_mapped", 20),
    ("dns6", "socket_receive6", 20),
    ("dns", "socket_peer", 29),
    ("dns", "peer_mapped", 30),
    ("dns6", "socket_peer6", 30),
)
REMADE: Final = "remade", "cgroup_remade"  # object and program
_TRACEPOINT: Final = 23
AT_UPLINK: Final = "uplink"  # object and program
RUN: Final = ("grant", "grant6")  # by grants.py
OBJECTS: Final = (
    *dict.fromkeys(name for name, _, _ in (*HOOKS, *ANSWERS)),
    *(AT_UPLINK, "uplink6", *RUN, REMADE[0], strays.OBJECT, "stray6"),
)
_SO_NETNS_COOKIE: Final = 71
_BY_CONFIGURATION: Final = 1  # in the place of the pool: others excuse cgroups, too


def root_of(config: SocketsConfig | None) -> Path | None:
    """The cgroup to attach to; None: sockets are not to be looked after. Raises HostError when they are, and cannot."""
    if config is None or config.enabled is False:
        return None
    root = Path(config.cgroup) if config.cgroup is not None else cgroups.find_root()
    if root is None:
        if config.enabled:
            raise HostError(
                "no cgroup2 is mounted, so sockets cannot be looked after",
                "mount one: mount -t cgroup2 none /sys/fs/cgroup/unified; or set sockets.enabled = false",
            )
        return None
    cgroups.number(root)
    return root


def netns_cookie(of: socket.socket | None = None) -> int:
    """What the kernel calls the network namespace of a socket, or of the calling thread; never 0."""
    if of is not None:
        return int.from_bytes(of.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        return netns_cookie(asking)


def attach(root: Path, objects: Mapping[str, BpfObject], links: Path) -> Iterator[tuple[str, Link]]:
    """Attaches every hook, or gives its link the new program; by the name of the program. Last, what the cgroups have
    that are in agreements already."""
    objects[HOOKS[0][0]].maps["outsiders"].set(TAG, new_tag())  # it is 0 in a new map
    yield from _attach(HOOKS, root, objects, links)
    name, program = REMADE
    yield program, Link.attach_anew(objects[name].programs[program], _TRACEPOINT, links / program)
    _attach_strays(root, objects, links.parent)


def attach_answers(
    root: Path | None, objects: Mapping[str, BpfObject], links: Path, held: MutableMapping[str, Link]
) -> None:
    """Likewise ANSWERS, among the links that are `held`; with no root, detaches them."""
    names = [program for _, program, _ in ANSWERS]
    if root is None:
        for name in names:
            if (link := held.pop(name, None)) is not None:
                link.remove()
            elif (links / name).exists():
                link_of(links / name).remove()
    elif not held.keys() >= set(names):
        held.update(_attach(ANSWERS, root, objects, links))


def _attach(
    hooks: Sequence[tuple[str, str, int]], root: Path, objects: Mapping[str, BpfObject], links: Path
) -> Iterator[tuple[str, Link]]:
    with _folder(root) as descriptor:
        for name, program, kind in hooks:
            link = Link.attach(objects[name].programs[program], descriptor, kind, links / program)
            yield program, link


def detach(links: Path, uplink: str) -> None:
    """What another configuration has attached."""
    for name in (
        REMADE[1],
        *(program for _, program, _ in (*ANSWERS, *reversed(HOOKS))),
        f"{AT_UPLINK}@{uplink}",
    ):
        if (links / name).exists():
            link_of(links / name).remove()
    strays.detach_all(links.parent)


def _attach_strays(root: Path, objects: Mapping[str, BpfObject], folder: Path) -> None:
    strays.pin_program(folder, objects)
    with Agreements.open(folder) as table:
        strays.attach_all(folder, table.watched, lambda number: cgroup_tree.path_of(root, number))


def set_excused(maps: Mapping[str, Map], root: Path, excused: Sequence[str]) -> tuple[str, ...]:
    """Makes the excused cgroups be these. Returns those that are not there (yet). Whoever is in no agreement is found
    out anew, in case somebody died while one began."""
    table, entry = maps["agreements"], abi.Agreement(abi.AgreementKind.EXCUSED, _BY_CONFIGURATION)
    numbers, missing = set[int](), list[str]()
    for cgroup in excused:
        try:
            numbers.add(cgroups.number(cgroups.path_below(root, cgroup)))
        except HostError:
            missing.append(cgroup)
    before = {int.from_bytes(key, "little") for key, value in list(table.items()) if value == entry.pack()}
    for number in before - numbers:
        table.delete(number.to_bytes(8, "little"))
    for number in numbers - before:
        begin(table, maps["outsiders"], number, entry)
    maps["outsiders"].set(TAG, new_tag())
    return tuple(missing)


@contextmanager
def _folder(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
