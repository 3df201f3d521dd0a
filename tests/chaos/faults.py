"""The faults, each a short function: what it does to the world, and whom it may disturb until it is repaired.

Must not judge. The one idea: a fault says which ways it may stop; whatever it does not name must not notice it.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.api import calling
from tests.chaos.world import STABLE, VICTIMS, World, until

#: Seconds for which a repair is waited for; only a machine that stands still needs so many.
PATIENCE = 60.0


class Fault(NamedTuple):
    """`stops`: words of the names of ways (all of them) that may fail meanwhile; `breaks`: whether their streams may
    end; `host`: whether it is undone by more than the table."""

    act: Callable[[World, random.Random], None]
    stops: tuple[str, ...] = ()
    breaks: bool = False
    host: bool = False


ALL: dict[str, Fault] = {}
_Act = Callable[[World, random.Random], None]


def fault(kind: str, *stops: str, breaks: bool = False, host: bool = False) -> Callable[[_Act], _Act]:
    """Enter a function as a fault."""

    def enter(act: _Act) -> _Act:
        ALL[kind] = Fault(act, stops, breaks, host)
        return act

    return enter


def _written(kind: str, text: str, *stops: str, breaks: bool = False) -> None:
    """A fault that is a piece of nft text; `$stable` is the port of t1's mapping, `$victim` one of the victims'."""

    def act(world: World, chance: random.Random) -> None:
        world.nft(text.replace("$stable", str(STABLE["t1"])).replace("$victim", str(chance.choice(VICTIMS))))

    ALL[kind] = Fault(act, stops, breaks)


# Without a NAT chain the kernel translates no packet, not even of running flows: who sends then gets a reset.
_written("flush ruleset", "flush ruleset", "", breaks=True)
_written("table deleted", "delete table inet nfportd", "", breaks=True)
_written("table asleep", "add table inet nfportd { flags dormant; }", "", breaks=True)
_written("element deleted", "delete element inet nfportd any4 { tcp . $stable }", "tcp4 t1")
_written("victim deleted", "delete element inet nfportd any4 { tcp . $victim }")
_written(
    "element changed",
    "delete element inet nfportd any6 { tcp . $stable }\n"
    "add element inet nfportd any6 { tcp . $stable : fd88::99 . 9 }",
    "tcp6 t1",
)
_written("element added", "add element inet nfportd any4 { tcp . 59999 : 10.88.0.99 . 9 }")
_written("map flushed", "flush map inet nfportd any4", "p4")
_written("set flushed", "flush set inet nfportd onlink6")
_written("chain flushed", "flush chain inet nfportd dispatch", "")
_written("entry flushed", "flush chain inet nfportd output", "loopback")
_written("guard deleted", "delete chain inet nfportd loopback_guard")
_written("rule added", "insert rule inet nfportd prerouting counter drop", "outside")
_written("rule appended", "add rule inet nfportd dispatch counter accept")
_written(
    "chain added",
    "add chain inet nfportd stranger { type filter hook forward priority 0; policy drop; }",
    "",
)
_written("map deleted", "flush chain inet nfportd dispatch\ndelete map inet nfportd any6", "")
_written("stranger's table", "add table inet stranger\nadd chain inet stranger c\ndelete table inet stranger")


@fault("ip_forward off", "outside", "p4", host=True)
def _(world: World, _chance: random.Random) -> None:
    world.host.sysctl("net/ipv4/ip_forward", 0)


@fault("forwarding off", "outside", "p6", host=True)
def _(world: World, _chance: random.Random) -> None:
    world.host.sysctl("net/ipv6/conf/all/forwarding", 0)


@fault("route_localnet off", "loopback", "p4 t1", host=True)
def _(world: World, _chance: random.Random) -> None:
    world.host.sysctl("net/ipv4/conf/br0/route_localnet", 0)


@fault("::1 route removed", "loopback", "p6 t3", host=True)
def _(world: World, _chance: random.Random) -> None:
    route = next(r for r in world.host.ip("-6", "route", "show", "table", "local", "::1").splitlines() if "veth3" in r)
    world.host.ip("-6", "route", "del", *route.split(), "table", "local")


@fault("target's route removed", " t3", host=True)
def _(world: World, _chance: random.Random) -> None:
    world.host.ip("route", "del", "10.88.1.2/32", "dev", "veth3")
    time.sleep(0.15)
    world.host.ip("route", "add", "10.88.1.2/32", "dev", "veth3", "src", "10.88.1.1")


@fault("link down", " t3", host=True)
def _(world: World, _chance: random.Random) -> None:
    world.host.ip("link", "set", "veth3", "down")
    time.sleep(0.1)
    world.host.ip("link", "set", "veth3", "up")
    # The kernel takes these away with the link; whoever manages it brings them back.
    world.host.batch(
        "addr replace fd88:0:0:1::1/128 dev veth3 nodad\nroute replace fd88:0:0:1::2/128 dev veth3\n"
        "route replace 10.88.1.2/32 dev veth3 src 10.88.1.1\n"
    )
    _t3(world)


@fault("link made anew", " t3", breaks=True, host=True)
def _(world: World, _chance: random.Random) -> None:
    world.host.ip("link", "del", "veth3")
    world.lab.link(world.lab.t3, "eth0", world.host, "veth3")
    world.host.batch(
        "addr add 10.88.1.1 peer 10.88.1.2/32 dev veth3\naddr add fd88:0:0:1::1/128 dev veth3 nodad\n"
        "route add fd88:0:0:1::2/128 dev veth3\n"
    )
    _t3(world)


def _t3(world: World) -> None:
    world.lab.t3.batch(
        "addr replace 10.88.1.2 peer 10.88.1.1/32 dev eth0\nroute replace default via 10.88.1.1\n"
        "addr replace fd88:0:0:1::2/128 dev eth0 nodad\nroute replace fd88:0:0:1::1/128 dev eth0\n"
        "route replace default via fd88:0:0:1::1\n"
    )


@fault("killed")
def _(world: World, _chance: random.Random) -> None:
    _restart(world)


@fault("killed, and flushed", "", breaks=True)
def _(world: World, _chance: random.Random) -> None:
    world.daemon.kill9()
    world.nft("flush ruleset")
    _restart(world)


@fault("killed in a start")
def _(world: World, chance: random.Random) -> None:
    world.daemon.kill9()
    world.daemon.start(wait=False)
    time.sleep(chance.uniform(0, 0.8))
    _restart(world)


@fault("libnftables killed")
def _(world: World, _chance: random.Random) -> None:
    _kill_child(world)


@fault("libnftables killed, and flushed", "", breaks=True)
def _(world: World, _chance: random.Random) -> None:
    _kill_child(world)
    world.nft("flush ruleset")


def _kill_child(world: World) -> None:
    for child in children(world.daemon.pid):
        os.kill(child, 9)


def children(pid: int) -> list[int]:
    """Of a process's main thread."""
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def _restart(world: World) -> None:
    """End it if it still runs, and start it, as a service manager would at once."""
    if world.daemon.process is not None:
        world.daemon.kill9()
    world.daemon.start(timeout=PATIENCE)


@fault("files of garbage")
def _(world: World, chance: random.Random) -> None:
    directory = world.daemon.dropins
    (directory / "garbage.yaml").write_bytes(chance.randbytes(4096))
    (directory / "broken.yaml").write_text("mappings:\n  - {listen: 80, targets: '10.88.0.11:80'\n")
    (directory / "taken.yaml").write_text(f"mappings:\n  - {{listen: {STABLE['t1']}, targets: '10.88.0.12:80'}}\n")
    (directory / "place.yaml").mkdir(exist_ok=True)
    os.mkfifo(directory / "pipe.yaml")
    (directory / "loop.yaml").symlink_to("loop.yaml")
    time.sleep(chance.uniform(0, 0.1))
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        elif path.name not in world.files:
            path.unlink()


@fault("garbage in a good file")
def _(world: World, chance: random.Random) -> None:
    name = chance.choice(sorted(world.files))
    world.daemon.write(name, chance.choice(["mappings: [", "\0\1\2", "mappings:\n  - {listen: 70000}\n"]), wait=False)
    time.sleep(chance.uniform(0, 0.05))
    if chance.random() < 0.3:
        _restart(world)
    world.daemon.write(name, world.files[name], wait=False)


@fault("store full")
def _(world: World, chance: random.Random) -> None:
    _fill(world)
    time.sleep(chance.uniform(0.1, 0.5))
    _free(world)


@fault("store full, and killed")
def _(world: World, _chance: random.Random) -> None:
    _fill(world)
    _restart(world)
    _free(world)


@fault("store full, and flushed", "", breaks=True)
def _(world: World, _chance: random.Random) -> None:
    _fill(world)
    world.nft("flush ruleset")
    until(world.kernel_is_right, PATIENCE)
    _free(world)


def _fill(world: World) -> None:
    for place in ("run", "state"):
        fill = world.daemon.inside / place / "fill"
        size = shutil.disk_usage(fill.parent).free
        with fill.open("wb", buffering=0) as file:
            try:
                while size > 0:
                    size -= file.write(bytes(4096))
            except OSError:
                continue


def _free(world: World) -> None:
    for place in ("run", "state"):
        (world.daemon.inside / place / "fill").unlink()


@fault("clients hang up")
def _(world: World, chance: random.Random) -> None:
    content = b'{"mappings": [{"listen": 29999, "targets": "10.88.0.12:9"}]}'
    head = "PUT /v1/owners/hangs-up HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    whole = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
    for _ in range(20):
        with calling.connected(world.daemon) as sock:
            sock.sendall(whole[: chance.randrange(len(whole) + 1)])
    with calling.connected(world.daemon) as sock:
        sock.sendall(b"GET /v1/events?since=0 HTTP/1.1\r\nHost: x\r\n\r\n")


@fault("drop-ins read anew")
def _(world: World, _chance: random.Random) -> None:
    world.daemon.hup()


@fault("several at once", "", breaks=True, host=True)
def _(world: World, _chance: random.Random) -> None:
    """Several at once."""
    world.nft("flush ruleset")
    world.host.sysctl("net/ipv4/ip_forward", 0)
    _kill_child(world)
    world.nft("add table inet nfportd\nadd chain inet nfportd dispatch\nadd rule inet nfportd dispatch drop")
