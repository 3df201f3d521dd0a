"""Frames made by hand, and an eye on a link: what no well-behaved socket would send or show.

It knows nothing of nfportd or of the plan of the laboratory. The one idea: a packet is known again after NAT
by what NAT leaves alone: its payload, its TCP sequence number, its SCTP tag.
"""

from __future__ import annotations

import secrets
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.netns import Namespace

ETH_P_ALL = 3
ETHERTYPE = {4: 0x0800, 6: 0x86DD}
PROTO = {"tcp": 6, "udp": 17, "sctp": 132}


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _sum_over(source: str, destination: str, proto: str, segment: bytes) -> int:
    pseudo = packed(source) + packed(destination) + struct.pack("!II", len(segment), PROTO[proto])
    return checksum(pseudo + segment)


def udp(source: str, destination: str, sport: int, dport: int, payload: bytes) -> bytes:
    segment = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
    return segment[:6] + struct.pack("!H", _sum_over(source, destination, "udp", segment) or 0xFFFF) + segment[8:]


def tcp_syn(source: str, destination: str, sport: int, dport: int, sequence: int) -> bytes:
    segment = struct.pack("!HHIIBBHHH", sport, dport, sequence, 0, 5 << 4, 0x02, 64000, 0, 0)
    return segment[:16] + struct.pack("!H", _sum_over(source, destination, "tcp", segment)) + segment[18:]


def sctp_init(sport: int, dport: int, tag: int) -> bytes:
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, tag, 65536, 1, 1, 1)
    head = struct.pack("!HHI", sport, dport, 0)
    return head + struct.pack("<I", crc32c(head + bytes(4) + chunk)) + chunk


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def packet(source: str, destination: str, proto: str, segment: bytes) -> bytes:
    """An IPv4 or IPv6 packet around a segment, as the addresses say."""
    if ":" in destination:
        head = struct.pack("!IHBB", 6 << 28, len(segment), PROTO[proto], 64)
        return head + packed(source) + packed(destination) + segment
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 0, 64, PROTO[proto], 0)
    head += packed(source) + packed(destination)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + segment


@dataclass(frozen=True)
class Seen:
    """One packet on a link, taken apart as far as the tests ask."""

    source: str
    destination: str
    proto: int
    sport: int
    dport: int
    segment: bytes

    @property
    def sequence(self) -> int:
        return int.from_bytes(self.segment[4:8], "big")

    @property
    def acknowledged(self) -> int:
        return int.from_bytes(self.segment[8:12], "big")

    @property
    def init_tag(self) -> int:
        return int.from_bytes(self.segment[16:20], "big")


def take_apart(frame: bytes) -> Seen | None:
    kind, body = int.from_bytes(frame[12:14], "big"), frame[14:]
    if kind == ETHERTYPE[4] and len(body) >= 24:
        size, proto, family, source, destination = (
            (body[0] & 15) * 4,
            body[9],
            socket.AF_INET,
            body[12:16],
            body[16:20],
        )
    elif kind == ETHERTYPE[6] and len(body) >= 44:
        size, proto, family = 40, body[6], socket.AF_INET6
        source, destination = body[8:24], body[24:40]
    else:
        return None
    if proto not in PROTO.values():
        return None
    sport, dport = struct.unpack("!HH", body[size : size + 4])
    names = socket.inet_ntop(family, source), socket.inet_ntop(family, destination)
    return Seen(*names, proto, sport, dport, body[size:])


class Wire:
    """A packet socket on one interface of a namespace: sends frames as they are, sees all that pass."""

    def __init__(self, space: Namespace, interface: str = "eth0") -> None:
        self.sock = space.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self.sock.bind((interface, 0))
        self.mac = packed_mac(space.mac(interface))
        self.all: list[Seen] = []

    def send(self, destination_mac: str, content: bytes) -> None:
        kind = ETHERTYPE[content[0] >> 4]
        self.sock.send(packed_mac(destination_mac) + self.mac + struct.pack("!H", kind) + content)

    def see(self, wanted: Callable[[Seen], bool], wait: float = 1.0) -> Seen | None:
        """The first packet that is wanted, among those since the beginning, for up to `wait` seconds."""
        until = time.monotonic() + wait
        for seen in self.all:
            if wanted(seen):
                return seen
        while (left := until - time.monotonic()) > 0:
            self.sock.settimeout(left)
            try:
                seen_now = take_apart(self.sock.recv(2048))
            except TimeoutError:
                return None
            if seen_now is not None:
                self.all.append(seen_now)
                if wanted(seen_now):
                    return seen_now
        return None

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def packed_mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def sctp_checksum_is_right(segment: bytes) -> bool:
    return crc32c(segment[:8] + bytes(4) + segment[12:]) == int.from_bytes(segment[8:12], "little")


def sent_init(client: Namespace, mac: str, source: str, destination: str, port: int, target: Namespace) -> Seen | None:
    """Send an SCTP INIT of its own to a port, by the gateway at `mac`; what of it arrives at the target."""
    tag, sport = secrets.randbelow(1 << 31), 40000 + secrets.randbelow(20000)
    with Wire(client) as wire, Wire(target) as link:
        wire.send(mac, packet(source, destination, "sctp", sctp_init(sport, port, tag)))
        seen = link.see(lambda seen: seen.proto == PROTO["sctp"] and seen.init_tag == tag)
    assert seen is None or seen.sport == sport
    return seen
