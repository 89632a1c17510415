"""Generated from bpf/abi.h by `make abi`: structs and enums shared with the data path. Do not edit.

IPv4 addresses and ports marked `be` in abi.h are integers as they lie in memory; convert with be16 and
be32. IPv6 addresses are bytes, in structs of their own (with a 6 in their names).
Byte order is little endian: the objects are built for bpfel.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple


class Reason(IntEnum):
    NONE = 0
    MALFORMED = 1
    FRAGMENT = 2
    FRAGMENT_LOST = 3
    ICMP_ERROR = 4
    PROTOCOL = 5
    INTERNAL = 6
    NO_OWNER = 7
    LEASE_EXPIRED = 8
    STEER_LOOP = 9
    NO_NEIGHBOUR = 10
    TUNNEL_STRANGER = 11
    TUNNEL_ASTRAY = 12
    NO_POOL = 13
    NO_SLICE = 14
    SLICE_FULL = 15
    TABLE_FULL = 16
    CLIENT_FLOWS = 17
    CLIENT_STATE = 18
    CLIENT_RATE = 19
    CLIENT_TABLE = 20
    NO_FLOW = 21
    NO_ROUTE = 22
    HOP_LIMIT = 23
    TOO_BIG = 24
    FAMILY = 25
    FILTERED = 26
    UNSOLICITED = 27
    SPOOFED = 28
    BIND_REFUSED = 29
    BIND_OUTSIDE = 30
    SOCKET_TAKEN = 31
    NO_ADDRESS = 32
    NAMESPACE = 33
    NO_RESOLVER = 34
    NOT_UPLINK = 35
    GUARD_FOREIGN = 36
    GUARD_NOBODY = 37
    GUARD_EXPIRED = 38
    GUARD_FRAGMENT = 39
    GUARD_PROTOCOL = 40
    GUARD_TUNNEL = 41
    GUARD_SOCKET = 42
    MAX = 43


class Traffic(IntEnum):
    HERE = 0
    STEERED = 1
    OUT = 2
    IN = 3
    TO_HOST = 4
    NEW_FLOW = 5
    REUSED = 6
    ICMP_SENT = 7
    ICMP_MUTED = 8
    FAST_OUT = 9
    FAST_IN = 10
    HELD = 11
    RELEASED = 12
    CUT = 13
    TUNNEL_OUT = 14
    TUNNEL_IN = 15
    SOCKETS = 16
    MAX = 17


class Hook(IntEnum):
    NONE = 0
    DIRECTOR = 1
    EGRESS_OUT = 2
    EGRESS_IN = 3
    GUARD = 4
    SOCKET = 5
    UPLINK = 6


class Handed(IntEnum):
    DIRECTOR = 0
    FAST = 1
    MAX = 2


class HandedTc(IntEnum):
    TC_DIRECTOR = 0
    TC_REMOTE = 1
    TC_EGRESS_IN = 2
    TC_EGRESS_OUT = 3
    TC_UPLINK = 4
    TC_GUARD = 5
    TC_MAX = 6


class ServerKind(IntEnum):
    UNUSED = 0
    SELF = 1
    NEIGHBOUR = 2
    REMOTE = 3


class TcpSeen(IntEnum):
    OUT = 1
    IN = 2
    FIN_OUT = 4
    FIN_IN = 8
    RST = 16
    COUNTED = 32


class Behaviour(IntEnum):
    MAPPING_TCP = 1
    MAPPING_UDP = 2
    MAPPING_ICMP = 4
    FILTERING_TCP = 8
    FILTERING_UDP = 16
    FILTERING_ICMP = 32
    LIMIT = 64
    SEVERAL = 128
    ONE_ADDRESS = 256


class AgreementKind(IntEnum):
    NONE = 0
    POOL = 1
    EXCUSED = 2


class GrantStep(IntEnum):
    TAKE = 0
    EXTEND = 1
    END = 2


class AbiLimit(IntEnum):
    ABI_VERSION = 4
    NAME_BYTES = 48
    POOL_SLICES_MAX = 256
    LINE_GROUPS = 7
    LINE_ADDRESSES = 16
    LINE_OWNERS = 32
    GROUP_BIT = 268435456
    GROUP_TRIES = 8
    TICK_NS = 67108864
    ONRAMP_SOURCES_MAX = 16
    RESOLVERS_MAX = 4


class Settings(NamedTuple):
    abi_version: int
    uplink: int
    self: int
    uplink_mtu: int
    group_mask: int
    address6: bytes
    granted: int
    netns_cookie: int

    def pack(self) -> bytes:
        return _settings.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Settings:
        return cls._make(_settings.unpack(data))


_settings = Struct("<IIIII16sIQ")
SETTINGS_BYTES: Final = 48


class BlockKey(NamedTuple):
    prefix_length: int
    address: int

    def pack(self) -> bytes:
        return _block_key.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> BlockKey:
        return cls._make(_block_key.unpack(data))


_block_key = Struct("<II")
BLOCK_KEY_BYTES: Final = 8


class BlockKey6(NamedTuple):
    prefix_length: int
    address: bytes

    def pack(self) -> bytes:
        return _block_key6.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> BlockKey6:
        return cls._make(_block_key6.unpack(data))


_block_key6 = Struct("<I16s")
BLOCK_KEY6_BYTES: Final = 20


class Group(NamedTuple):
    number: int
    line: int

    def pack(self) -> bytes:
        return _group.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Group:
        return cls._make(_group.unpack(data))


_group = Struct("<II")
GROUP_BYTES: Final = 8


class GroupLine(NamedTuple):
    groups: bytes
    overflowed: int

    def pack(self) -> bytes:
        return _group_line.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> GroupLine:
        return cls._make(_group_line.unpack(data))


_group_line = Struct("<56sI4x")
GROUP_LINE_BYTES: Final = 64


class AddressLine(NamedTuple):
    where: bytes

    def pack(self) -> bytes:
        return _address_line.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> AddressLine:
        return cls._make(_address_line.unpack(data))


_address_line = Struct("<64s")
ADDRESS_LINE_BYTES: Final = 64


class OwnerLine(NamedTuple):
    owners: bytes

    def pack(self) -> bytes:
        return _owner_line.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> OwnerLine:
        return cls._make(_owner_line.unpack(data))


_owner_line = Struct("<64s")
OWNER_LINE_BYTES: Final = 64


class Slot(NamedTuple):
    deadline_ns: int
    epoch: int

    def pack(self) -> bytes:
        return _slot.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Slot:
        return cls._make(_slot.unpack(data))


_slot = Struct("<QI4x")
SLOT_BYTES: Final = 16


class Server(NamedTuple):
    mac: bytes
    kind: int
    address: int
    name: bytes

    def pack(self) -> bytes:
        return _server.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Server:
        return cls._make(_server.unpack(data))


_server = Struct("<6sB1xI48s")
SERVER_BYTES: Final = 60


class Hop(NamedTuple):
    until_ns: int
    destination: bytes
    source: bytes
    mtu: int

    def pack(self) -> bytes:
        return _hop.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Hop:
        return cls._make(_hop.unpack(data))


_hop = Struct("<Q6s6sI")
HOP_BYTES: Final = 24


class Path(NamedTuple):
    until_ns: int
    mtu: int

    def pack(self) -> bytes:
        return _path.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Path:
        return cls._make(_path.unpack(data))


_path = Struct("<QI4x")
PATH_BYTES: Final = 16


class PoolSlice(NamedTuple):
    address: int
    slot: int
    first: int
    mask: int

    def pack(self) -> bytes:
        return _pool_slice.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> PoolSlice:
        return cls._make(_pool_slice.unpack(data))


_pool_slice = Struct("<IIHH")
POOL_SLICE_BYTES: Final = 12


class PoolSlice6(NamedTuple):
    address: bytes
    slot: int
    first: int
    mask: int

    def pack(self) -> bytes:
        return _pool_slice6.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> PoolSlice6:
        return cls._make(_pool_slice6.unpack(data))


_pool_slice6 = Struct("<16sIHH")
POOL_SLICE6_BYTES: Final = 24


class Pool(NamedTuple):
    tcp_opening_ns: int
    tcp_established_ns: int
    tcp_closing_ns: int
    udp_ns: int
    icmp_ns: int
    rest_ns: int
    slice_count: int
    behaviour: int
    client_flows_max: int
    client_tcp_max: int
    client_udp_max: int
    client_icmp_max: int
    client_state_max: int
    client_rate_max: int
    errors_max: int
    name: bytes
    slices: bytes

    def pack(self) -> bytes:
        return _pool.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Pool:
        return cls._make(_pool.unpack(data))


_pool = Struct("<QQQQQQIIIIIIIII4x48s3072s")
POOL_BYTES: Final = 3208


class Pool6(NamedTuple):
    tcp_opening_ns: int
    tcp_established_ns: int
    tcp_closing_ns: int
    udp_ns: int
    icmp_ns: int
    rest_ns: int
    slice_count: int
    behaviour: int
    client_flows_max: int
    client_tcp_max: int
    client_udp_max: int
    client_icmp_max: int
    client_state_max: int
    client_rate_max: int
    errors_max: int
    name: bytes
    slices: bytes

    def pack(self) -> bytes:
        return _pool6.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Pool6:
        return cls._make(_pool6.unpack(data))


_pool6 = Struct("<QQQQQQIIIIIIIII4x48s6144s")
POOL6_BYTES: Final = 6280


class PoolDns(NamedTuple):
    resolver_count: int
    turn: int
    owes_since_ns: bytes
    addresses: bytes

    def pack(self) -> bytes:
        return _pool_dns.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> PoolDns:
        return cls._make(_pool_dns.unpack(data))


_pool_dns = Struct("<II32s16s")
POOL_DNS_BYTES: Final = 56


class PoolDns6(NamedTuple):
    resolver_count: int
    turn: int
    owes_since_ns: bytes
    addresses: bytes

    def pack(self) -> bytes:
        return _pool_dns6.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> PoolDns6:
        return cls._make(_pool_dns6.unpack(data))


_pool_dns6 = Struct("<II32s64s")
POOL_DNS6_BYTES: Final = 104


class Source(NamedTuple):
    address: int
    mask: int

    def pack(self) -> bytes:
        return _source.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Source:
        return cls._make(_source.unpack(data))


_source = Struct("<II")
SOURCE_BYTES: Final = 8


class Source6(NamedTuple):
    address: bytes
    mask: bytes

    def pack(self) -> bytes:
        return _source6.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Source6:
        return cls._make(_source6.unpack(data))


_source6 = Struct("<16s16s")
SOURCE6_BYTES: Final = 32


class Onramp(NamedTuple):
    pool: int
    address: int
    xdp_mtu: int
    mss: int
    mss_mtu: int
    source_count: int
    sources: bytes
    name: bytes

    def pack(self) -> bytes:
        return _onramp.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Onramp:
        return cls._make(_onramp.unpack(data))


_onramp = Struct("<IIIIII128s16s")
ONRAMP_BYTES: Final = 168


class Onramp6(NamedTuple):
    pool: int
    address: bytes
    xdp_mtu: int
    mss: int
    mss_mtu: int
    source_count: int
    sources: bytes
    name: bytes

    def pack(self) -> bytes:
        return _onramp6.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Onramp6:
        return cls._make(_onramp6.unpack(data))


_onramp6 = Struct("<I16sIIII512s16s")
ONRAMP6_BYTES: Final = 564


class ExemptKey(NamedTuple):
    prefix_length: int
    onramp: int
    address: int

    def pack(self) -> bytes:
        return _exempt_key.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> ExemptKey:
        return cls._make(_exempt_key.unpack(data))


_exempt_key = Struct("<III")
EXEMPT_KEY_BYTES: Final = 12


class ExemptKey6(NamedTuple):
    prefix_length: int
    onramp: int
    address: bytes

    def pack(self) -> bytes:
        return _exempt_key6.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> ExemptKey6:
        return cls._make(_exempt_key6.unpack(data))


_exempt_key6 = Struct("<II16s")
EXEMPT_KEY6_BYTES: Final = 24


class Agreement(NamedTuple):
    kind: int
    pool: int

    def pack(self) -> bytes:
        return _agreement.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Agreement:
        return cls._make(_agreement.unpack(data))


_agreement = Struct("<II")
AGREEMENT_BYTES: Final = 8


class CgroupName(NamedTuple):
    parent: int
    name: bytes

    def pack(self) -> bytes:
        return _cgroup_name.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> CgroupName:
        return cls._make(_cgroup_name.unpack(data))


_cgroup_name = Struct("<Q256s")
CGROUP_NAME_BYTES: Final = 264


class Lasting(NamedTuple):
    cgroup: int
    pool: int
    unused: int

    def pack(self) -> bytes:
        return _lasting.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Lasting:
        return cls._make(_lasting.unpack(data))


_lasting = Struct("<QII")
LASTING_BYTES: Final = 16


class GrantKey(NamedTuple):
    address: bytes
    uid: int
    port: int
    protocol: int
    family: int

    def pack(self) -> bytes:
        return _grant_key.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> GrantKey:
        return cls._make(_grant_key.unpack(data))


_grant_key = Struct("<16sIHBB")
GRANT_KEY_BYTES: Final = 24


class Grant(NamedTuple):
    deadline_ns: int
    pool: int

    def pack(self) -> bytes:
        return _grant.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Grant:
        return cls._make(_grant.unpack(data))


_grant = Struct("<QI4x")
GRANT_BYTES: Final = 16


class FlowKey(NamedTuple):
    client: int
    remote: int
    client_port: int
    remote_port: int
    onramp: int
    protocol: int

    def pack(self) -> bytes:
        return _flow_key.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> FlowKey:
        return cls._make(_flow_key.unpack(data))


_flow_key = Struct("<IIHHIB3x")
FLOW_KEY_BYTES: Final = 20


class FlowKey6(NamedTuple):
    client: bytes
    remote: bytes
    client_port: int
    remote_port: int
    onramp: int
    protocol: int

    def pack(self) -> bytes:
        return _flow_key6.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> FlowKey6:
        return cls._make(_flow_key6.unpack(data))


_flow_key6 = Struct("<16s16sHHIB3x")
FLOW_KEY6_BYTES: Final = 44


class Flow(NamedTuple):
    refresh_ns: int
    hop_ns: int
    local: int
    local_port: int
    hop_destination: bytes
    hop_source: bytes
    hop_mtu: int
    acknowledged: int
    sent: int
    hairpin: int
    client_mac: bytes

    def pack(self) -> bytes:
        return _flow.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Flow:
        return cls._make(_flow.unpack(data))


_flow = Struct("<QQIH6s6sHIII6s2x")
FLOW_BYTES: Final = 56


class Flow6(NamedTuple):
    refresh_ns: int
    hop_ns: int
    local: bytes
    local_port: int
    hop_destination: bytes
    hop_source: bytes
    hop_mtu: int
    acknowledged: int
    sent: int
    hairpin: int
    client_mac: bytes

    def pack(self) -> bytes:
        return _flow6.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Flow6:
        return cls._make(_flow6.unpack(data))


_flow6 = Struct("<QQ16sH6s6sHIII6s2x4x")
FLOW6_BYTES: Final = 72


class ClaimKey(NamedTuple):
    local: int
    remote: int
    local_port: int
    remote_port: int
    protocol: int

    def pack(self) -> bytes:
        return _claim_key.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> ClaimKey:
        return cls._make(_claim_key.unpack(data))


_claim_key = Struct("<IIHHB3x")
CLAIM_KEY_BYTES: Final = 16


class ClaimKey6(NamedTuple):
    local: bytes
    remote: bytes
    local_port: int
    remote_port: int
    protocol: int

    def pack(self) -> bytes:
        return _claim_key6.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> ClaimKey6:
        return cls._make(_claim_key6.unpack(data))


_claim_key6 = Struct("<16s16sHHB3x")
CLAIM_KEY6_BYTES: Final = 40


class Claim(NamedTuple):
    expires_ns: int
    flow: bytes
    state: int
    pool: int
    acknowledged: int
    sent: int
    since_ticks: int
    refresh_in_ticks: int
    client_mac: bytes
    onramp_mac: bytes

    def pack(self) -> bytes:
        return _claim.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Claim:
        return cls._make(_claim.unpack(data))


_claim = Struct("<Q20sIIIIII6s6s")
CLAIM_BYTES: Final = 64


class Claim6(NamedTuple):
    expires_ns: int
    flow: bytes
    state: int
    pool: int
    acknowledged: int
    sent: int
    since_ticks: int
    refresh_in_ticks: int
    client_mac: bytes
    onramp_mac: bytes

    def pack(self) -> bytes:
        return _claim6.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Claim6:
        return cls._make(_claim6.unpack(data))


_claim6 = Struct("<Q44sIIIIII6s6s")
CLAIM6_BYTES: Final = 88


class ClientKey(NamedTuple):
    onramp: int
    address: int

    def pack(self) -> bytes:
        return _client_key.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> ClientKey:
        return cls._make(_client_key.unpack(data))


_client_key = Struct("<II")
CLIENT_KEY_BYTES: Final = 8


class ClientKey6(NamedTuple):
    onramp: int
    address: bytes

    def pack(self) -> bytes:
        return _client_key6.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> ClientKey6:
        return cls._make(_client_key6.unpack(data))


_client_key6 = Struct("<I16s")
CLIENT_KEY6_BYTES: Final = 20


class Client(NamedTuple):
    next_ns: int
    claims: int
    tcp: int
    udp: int
    icmp: int
    address: int

    def pack(self) -> bytes:
        return _client.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Client:
        return cls._make(_client.unpack(data))


_client = Struct("<QIIIII4x")
CLIENT_BYTES: Final = 32


class DatagramKey(NamedTuple):
    source: int
    destination: int
    interface: int
    id: int
    protocol: int

    def pack(self) -> bytes:
        return _datagram_key.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> DatagramKey:
        return cls._make(_datagram_key.unpack(data))


_datagram_key = Struct("<IIIHB1x")
DATAGRAM_KEY_BYTES: Final = 16


class DatagramKey6(NamedTuple):
    source: bytes
    destination: bytes
    interface: int
    id: int
    protocol: int

    def pack(self) -> bytes:
        return _datagram_key6.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> DatagramKey6:
        return cls._make(_datagram_key6.unpack(data))


_datagram_key6 = Struct("<16s16sIIB3x")
DATAGRAM_KEY6_BYTES: Final = 44


class Datagram(NamedTuple):
    since_ns: int
    last: int
    known: int
    gone: int
    total: int
    source_port: int
    destination_port: int
    id: int

    def pack(self) -> bytes:
        return _datagram.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Datagram:
        return cls._make(_datagram.unpack(data))


_datagram = Struct("<QIIIIHHH2x")
DATAGRAM_BYTES: Final = 32


class Datagram6(NamedTuple):
    since_ns: int
    last: int
    known: int
    gone: int
    total: int
    source_port: int
    destination_port: int
    id: int

    def pack(self) -> bytes:
        return _datagram6.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Datagram6:
        return cls._make(_datagram6.unpack(data))


_datagram6 = Struct("<QIIIIHHI")
DATAGRAM6_BYTES: Final = 32


class Sample(NamedTuple):
    at_ns: int
    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    interface: int
    protocol: int
    hook: int
    family: int

    def pack(self) -> bytes:
        return _sample.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Sample:
        return cls._make(_sample.unpack(data))


_sample = Struct("<Q16s16sHHIBBB5x")
SAMPLE_BYTES: Final = 56


class Drop(NamedTuple):
    packets: int
    last: bytes

    def pack(self) -> bytes:
        return _drop.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Drop:
        return cls._make(_drop.unpack(data))


_drop = Struct("<Q56s")
DROP_BYTES: Final = 64


class Sweep(NamedTuple):
    now_ns: int
    freed: int
    live: int
    freed_max: int
    live_max: int
    run: int

    def pack(self) -> bytes:
        return _sweep.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Sweep:
        return cls._make(_sweep.unpack(data))


_sweep = Struct("<QQQQQI4x")
SWEEP_BYTES: Final = 48


class Sweeping(NamedTuple):
    swept_ns: int
    again_ns: int
    runs: int

    def pack(self) -> bytes:
        return _sweeping.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Sweeping:
        return cls._make(_sweeping.unpack(data))


_sweeping = Struct("<QQQ8x")
SWEEPING_BYTES: Final = 32


class Granting(NamedTuple):
    until_ns: int
    key: bytes
    pool: int
    step: int
    done: int

    def pack(self) -> bytes:
        return _granting.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Granting:
        return cls._make(_granting.unpack(data))


_granting = Struct("<Q16sIII4x")
GRANTING_BYTES: Final = 40


class Granting6(NamedTuple):
    until_ns: int
    key: bytes
    pool: int
    step: int
    done: int

    def pack(self) -> bytes:
        return _granting6.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Granting6:
        return cls._make(_granting6.unpack(data))


_granting6 = Struct("<Q40sIII4x")
GRANTING6_BYTES: Final = 64


class Usage(NamedTuple):
    at_ns: int
    flows: int
    busiest: int
    destination: bytes

    def pack(self) -> bytes:
        return _usage.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Usage:
        return cls._make(_usage.unpack(data))


_usage = Struct("<QII16s")
USAGE_BYTES: Final = 32


class Usage6(NamedTuple):
    at_ns: int
    flows: int
    busiest: int
    destination: bytes

    def pack(self) -> bytes:
        return _usage6.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Usage6:
        return cls._make(_usage6.unpack(data))


_usage6 = Struct("<QII40s")
USAGE6_BYTES: Final = 56


class UsageCell(NamedTuple):
    run: int
    flows: int

    def pack(self) -> bytes:
        return _usage_cell.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> UsageCell:
        return cls._make(_usage_cell.unpack(data))


_usage_cell = Struct("<II")
USAGE_CELL_BYTES: Final = 8
