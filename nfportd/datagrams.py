"""UDP flows of the relay: each client's datagrams to a target by a socket of their own, and the answers back.

Must not know who may send, nor where to. The one idea: a flow is told by its client's address and port, which
conntrack keeps apart for each port that a client means; it is asked again after a pause, in which conntrack may have
forgotten the flow and given the same address and port to another one.

What cannot be sent at once is lost, as UDP may be.
"""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Set as AbstractSet
from functools import partial
from typing import NamedTuple

from nfportd.desired import Claim
from nfportd.kernel.meant import UdpPorts
from nfportd.model import Endpoint
from nfportd.turns import Turns

#: Seconds without a datagram after which a flow ends (nf_conntrack_udp_timeout_stream).
IDLE = 120.0
#: Seconds for which a flow is what it was: less than conntrack keeps one (nf_conntrack_udp_timeout is 30).
_SURE = 10.0
#: Datagrams taken from a socket before others have their turn.
_AT_A_TIME = 16
_MARK = 36  # SO_MARK
_buffer = memoryview(bytearray(1 << 16))

#: An address and a port.
Peer = tuple[str, int]


class Room(NamedTuple):
    """How many flows there may be, and of one mapping. Beyond it the longest idle one makes room."""

    flows: int
    of_one: int


class _Flow:
    __slots__ = ("claim", "client", "endpoint", "heard", "port", "sock")

    def __init__(self, client: Peer, port: int, way: tuple[Claim, Endpoint], mark: int) -> None:
        self.client, self.port = client, port
        self.claim, self.endpoint = way
        self.heard = time.monotonic()
        self.sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, _MARK, mark)
            self.sock.connect(self.endpoint)
        except OSError:
            self.sock.close()
            raise


class Datagrams:
    """The flows that come in over one bound socket, which is closed with this.

    `way` tells whose mapping takes a port, and to where; `mark`: of the packets to targets.
    """

    def __init__(
        self,
        sock: socket.socket,
        way: Callable[[int], tuple[Claim, Endpoint] | None],
        turns: Turns,
        mark: int,
        room: Room,
    ) -> None:
        self._sock, self._way, self._turns, self._mark, self._room = sock, way, turns, mark, room
        self._own: Peer = sock.getsockname()[:2]
        self._ports = UdpPorts()
        # The longest idle one first.
        self._flows: OrderedDict[Peer, _Flow] = OrderedDict()
        self._of: Counter[Claim] = Counter()
        asyncio.get_running_loop().add_reader(sock.fileno(), self._receive)

    def __len__(self) -> int:
        return len(self._flows)

    def close(self) -> None:
        """End every flow."""
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        for flow in list(self._flows.values()):
            self._end(flow)
        self._ports.close()
        self._sock.close()

    def look(self, now: float) -> None:
        """End the flows that have been idle for too long; `now`: by the steady clock."""
        while self._flows and now - (flow := next(iter(self._flows.values()))).heard > IDLE:
            self._end(flow)

    def follow(self, ports: AbstractSet[int]) -> None:
        """End the flows to these ports that go elsewhere now, or nowhere."""
        for flow in [flow for flow in self._flows.values() if flow.port in ports]:
            now = self._way(flow.port)
            if now is None or now[1] != flow.endpoint:
                self._end(flow)

    def _end(self, flow: _Flow) -> None:
        del self._flows[flow.client]
        self._of[flow.claim] -= 1
        if not self._of[flow.claim]:
            del self._of[flow.claim]
        self._turns.forget(flow.sock.fileno())
        flow.sock.close()

    def _receive(self) -> None:
        for _ in range(_AT_A_TIME):
            try:
                count, (address, port, *_) = self._sock.recvfrom_into(_buffer)
            except OSError:
                return
            try:
                if flow := self._flow((address, port)):
                    self._heard(flow)
                    flow.sock.send(_buffer[:count])
            except OSError:
                # The target's host refuses (its answer to the datagram before), or has no room.
                continue

    def _flow(self, client: Peer) -> _Flow | None:
        """The flow of a client, begun if need be. Raises OSError."""
        flow = self._flows.get(client)
        if flow and time.monotonic() - flow.heard < _SURE:
            return flow
        port = self._ports.port(client, self._own)
        if flow:
            if flow.port == port:
                return flow
            self._end(flow)
        way = self._way(port)
        return self._begin(client, port, way) if way else None

    def _begin(self, client: Peer, port: int, way: tuple[Claim, Endpoint]) -> _Flow:
        if self._of[way[0]] >= self._room.of_one:
            self._end(next(flow for flow in self._flows.values() if flow.claim == way[0]))
        elif len(self._flows) >= self._room.flows:
            self._end(next(iter(self._flows.values())))
        flow = self._flows[client] = _Flow(client, port, way, self._mark)
        self._of[flow.claim] += 1
        self._turns.watch(flow.sock.fileno(), select.EPOLLIN, partial(self._answer, flow))
        return flow

    def _heard(self, flow: _Flow) -> None:
        flow.heard = time.monotonic()
        self._flows.move_to_end(flow.client)

    def _answer(self, flow: _Flow, _: int) -> None:
        for _ in range(_AT_A_TIME):
            try:
                count = flow.sock.recv_into(_buffer)
                self._heard(flow)
                self._sock.sendto(_buffer[:count], flow.client)
            except BlockingIOError:
                return
            except OSError:
                # What the network says of a datagram before.
                continue
