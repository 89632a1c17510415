"""What a drop reason means and what to do about it, for people. docs/reference/drops.md has the same sentences."""

from __future__ import annotations

from typing import Final

from softunicast.kernel.abi import Reason

MEANING: Final[dict[Reason, str]] = {
    Reason.MALFORMED: "The headers contradict each other or the length of the frame.",
    Reason.FRAGMENT: "A fragment that cannot be true (overlapping, too long).",
    Reason.FRAGMENT_LOST: "A fragment whose first did not come in time, that made room for others, or was too large.",
    Reason.ICMP_ERROR: "An ICMP error that quotes no conversation of ours, or quotes it wrongly.",
    Reason.PROTOCOL: "Neither TCP, UDP nor ICMP echo: there is no port to tell servers apart by.",
    Reason.INTERNAL: "A step that cannot fail did (no memory for the packet, or a bug). Report it.",
    Reason.NO_OWNER: "Arrived for a port of a shared address that no server holds a lease for.",
    Reason.LEASE_EXPIRED: "Arrived for a slice of this server whose lease has run out: is the agent running?",
    Reason.STEER_LOOP: "The hop limit ran out between servers: their slice tables disagree about the owner.",
    Reason.NO_NEIGHBOUR: "The owner of the slice is not known (has it registered?), or no route to it by the uplink.",
    Reason.TUNNEL_STRANGER: "To the end of this server's tunnels, from an address that no server of the site has.",
    Reason.TUNNEL_ASTRAY: "Came out of a tunnel, and is not for a slice of this server. It is not sent on again.",
    Reason.NO_POOL: "The interface is not, or no longer, an on-ramp of a pool; or a socket's pool is gone.",
    Reason.NO_SLICE: "The pool has no slice with a live lease on this server.",
    Reason.SLICE_FULL: "Every port of the pool's slices is taken towards this destination. Client got ICMP.",
    Reason.TABLE_FULL: "The table of claims or flows has no room: raise limits.flows_max. Client got ICMP.",
    Reason.CLIENT_FLOWS: "The client has as many flows as the pool allows one client. It got ICMP.",
    Reason.CLIENT_STATE: "The client has as many entries in the table as the pool allows one client. It got ICMP.",
    Reason.CLIENT_TABLE: "The table of clients has no room for one more: raise limits.clients_max. It got ICMP.",
    Reason.CLIENT_RATE: "The client opens flows faster than the pool allows one client. It got ICMP.",
    Reason.NO_FLOW: "A client packet in the middle of a conversation that is not (or no longer) known.",
    Reason.NO_ROUTE: "No way out by the uplink, or to a shared address whose slice nobody holds. Client got ICMP.",
    Reason.HOP_LIMIT: "The packet's hop limit (TTL) ran out here. Clients get ICMP, as from any router.",
    Reason.TOO_BIG: "Larger than the way on carries, and not to be cut. Its sender got ICMP with the size that fits.",
    Reason.FAMILY: "The pool has no address of the packet's family, and no other egress may serve it. Client got ICMP.",
    Reason.FILTERED: "Arrived for a client's own port, from somebody the client has not sent to.",
    Reason.UNSOLICITED: "A connection to a port that no client and no socket of this server has.",
    Reason.SPOOFED: "A client's packet from an address that its on-ramp does not list, "
    "or for neighbours where none can be (TUN).",
    Reason.BIND_REFUSED: "A program that is in no agreement tried to bind a shared address. It got EPERM.",
    Reason.BIND_OUTSIDE: "A program wants a shared address, or a port of it, that its pool does not have here now.",
    Reason.SOCKET_TAKEN: "A bound socket wants a port or a destination that another flow or socket has from there.",
    Reason.NO_ADDRESS: "A shared address is not on this host: is the agent starting, stopping or without uplink?",
    Reason.NAMESPACE: "A program in an agreement wanted to connect or send in another network namespace. It got EPERM.",
    Reason.NO_RESOLVER: "A program asks a resolver on loopback: its pool's dns has none of that family, "
    "or the socket is bound there.",
    Reason.NOT_UPLINK: "A program in an agreement wanted to send by another interface than the uplink. It got EPERM.",
    Reason.GUARD_FOREIGN: "Tried to leave with a source port of a slice that another server holds.",
    Reason.GUARD_NOBODY: "Tried to leave with a soft-unicast source that nobody holds.",
    Reason.GUARD_EXPIRED: "Tried to leave from a slice of this server whose lease has run out.",
    Reason.GUARD_FRAGMENT: "Tried to leave as a fragment of a datagram whose first one this server has not sent.",
    Reason.GUARD_TUNNEL: "Tried to leave for the end of another server's tunnel without coming from the director.",
    Reason.GUARD_SOCKET: "A socket that is in no agreement tried to send from a shared address.",
    Reason.GUARD_PROTOCOL: "Tried to leave with a soft-unicast source and no port (neither TCP, UDP nor ICMP echo).",
}
