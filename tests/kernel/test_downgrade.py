"""A table that a newer nft gave to an owner, met by an nft that does not know such tables: 1.0.6 crashes on listing it.

It must not know how the table is read. The one idea: such a table is made by netlink alone, so that no newer nft is
needed; clients say whether the forwarding goes on, and the log and the processes whether the daemon does.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from nfportd import ruleset
from tests.api.calling import client, eventually
from tests.conftest import dropin, mapping
from tests.hammer import Load, serve
from tests.lab import Daemon, Lab, address, endpoint

Start = Callable[..., Daemon]
OWN = "192.0.2.1"
PORT, PLAIN_SERVER = 8080, 81

# linux/netfilter/nfnetlink.h: NFNL_MSG_BATCH_BEGIN, _END, NFNL_SUBSYS_NFTABLES; linux/netlink.h: NLM_F_*, NLMSG_ERROR
BEGIN, END, NFTABLES = 0x10, 0x11, 10
REQUEST, ACK, CREATE, ERROR = 0x1, 0x4, 0x400, 2
# linux/netfilter/nf_tables.h: NFTA_TABLE_NAME, NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER, NFT_TABLE_F_PERSIST
NAME, FLAGS, OWNER, PERSIST = 1, 2, 0x2, 0x4
INET = 1


def attribute(kind: int, value: bytes) -> bytes:
    return (struct.pack("=HH", 4 + len(value), kind) + value).ljust((4 + len(value) + 3) & ~3, b"\0")


def message(kind: int, flags: int, family: int, resource: int, attributes: bytes = b"") -> bytes:
    body = struct.pack("=BBH", family, 0, socket.htons(resource)) + attributes
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body


def owned_table(lab: Lab, name: str) -> socket.socket:
    """Make a table with the flags owner and persist in the host; it has its owner while the socket is open."""
    sock = lab.host.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    sock.bind((0, 0))
    said = attribute(NAME, name.encode() + b"\0") + attribute(FLAGS, struct.pack(">I", OWNER | PERSIST))
    sock.send(
        message(BEGIN, REQUEST, 0, NFTABLES)
        + message(NFTABLES << 8, REQUEST | ACK | CREATE, INET, 0, said)
        + message(END, REQUEST, 0, NFTABLES)
    )
    sock.settimeout(5)
    answer = sock.recv(4096)
    error = -struct.unpack_from("=i", answer, 16)[0]
    if error:
        sock.close()
        pytest.skip(f"this kernel makes no table with the flags owner, persist (errno {error}; Linux >= 6.9 does)")
    return sock


def commands(skeleton: str) -> str:
    """The contents of a table as commands that leave the table itself alone."""
    made, rules, chain = [], [], ""
    for line in skeleton.splitlines():
        if found := re.fullmatch(r"  (map|set|counter) (\w+) (\{.*\})", line):
            made.append(f"add {found[1]} inet nfportd {found[2]} {found[3]}")
        elif found := re.fullmatch(r"  chain (\w+) \{( \})?", line):
            chain = found[1]
            made.append(f"add chain inet nfportd {chain}")
        elif found := re.fullmatch(r"    (type .*;)", line):
            made[-1] += f" {{ {found[1]} }}"
        elif found := re.fullmatch(r"    (\S.*)", line):
            rules.append(f"add rule inet nfportd {chain} {found[1]}")
    return "\n".join([*made, *rules, ""])


@pytest.fixture(scope="module", autouse=True)
def server(lab: Lab) -> None:
    serve(lab.t1, PLAIN_SERVER, "t1")


@pytest.fixture
def old(lab: Lab) -> Iterator[None]:
    """The nft here does not know the flags."""
    probe = lab.host.run(["nft", "-c", "add table inet nfportd_probe { flags owner, persist; }"], check=False)
    if not probe.returncode:
        pytest.skip("this nft knows tables with an owner")
    yield
    lab.host.run(["nft", "delete", "table", "inet", "other"], check=False)


@pytest.fixture
def left_behind(lab: Lab, old: None) -> None:
    """What a daemon with nft 1.1.3 left when it was killed, or restarted for a downgrade: it forwards to t1."""
    owned_table(lab, "nfportd").close()
    lab.host.nft(commands(ruleset.skeleton(13)))
    to = f"{address('t1', 4)} . {PLAIN_SERVER}"
    lab.host.nft(f"add element inet nfportd any4 {{ tcp . {PORT} : {to}, tcp . 9999 : {to} }}")


def web() -> dict[str, str]:
    return {"web.yaml": dropin(mapping("web", PORT, endpoint(address("t1", 4), PLAIN_SERVER)))}


def test_the_nft_of_this_host_can_neither_list_nor_change_it(lab: Lab, left_behind: None) -> None:
    """Else the tests below test nothing."""
    assert lab.host.run(["nft", "add table inet nfportd"], check=False).returncode != 0
    listed = lab.host.run(["nft", "-j", "list table inet nfportd"], check=False).stdout
    assert '"persist"' not in listed


def test_a_downgrade_is_adopted(lab: Lab, left_behind: None, start: Start) -> None:
    load = Load(lab.outside, OWN, PORT)
    time.sleep(0.2)
    daemon = start(web())
    time.sleep(0.2)
    tally = load.end()

    print(f"new connections over a downgrade: {tally}")
    assert tally.made > 100
    assert tally.failed < 50, tally
    assert daemon.elements("any4") == {f"tcp . {PORT}": f"{address('t1', 4)} . {PLAIN_SERVER}"}
    assert "the table has flags of a newer nft (persist); it is made anew" in daemon.log
    assert "Traceback" not in daemon.log
    with client(daemon) as api:
        status = api.get("/v1/status")
        assert (status["table"], status["features"]) == ("intact", {"owner_persist": False})
    lab.host.run(["nft", "delete element inet nfportd any4 { tcp . 8080 }"])
    daemon.wait_for("repaired:")
    daemon.kill9()
    seen = len(daemon.log)
    daemon.start()
    assert "adopted table" in daemon.log[seen:], "the second start meets nothing unusual"
    assert daemon.stop() == 0
    assert daemon.table() == {}


@pytest.mark.usefixtures("old")
def test_such_a_table_in_the_place_of_ours_is_made_anew(lab: Lab, start: Start) -> None:
    """Another program puts it there while the daemon runs, but looks away."""
    daemon = start(web())
    elements, seen = daemon.elements("any4"), len(daemon.log)
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        lab.host.run(["nft", "delete table inet nfportd"])
        owned_table(lab, "nfportd").close()
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    daemon.wait_for("repaired: ", seen)
    assert daemon.elements("any4") == elements
    with client(daemon) as api:
        assert api.get("/v1/status")["table"] == "intact"


def test_a_table_that_sleeps_is_woken_by_a_start(lab: Lab, start: Start) -> None:
    """nft 1.0.6 lists its one flag as garbage."""
    daemon = start(web())
    for _ in range(2):
        daemon.kill9()
        # Who changes flags must name them all; and it takes a moment until an owner is gone.
        asleep = "dormant, persist" if "owned" in daemon.log else "dormant"
        command = f"add table inet nfportd {{ flags {asleep}; }}"
        eventually(lambda: lab.host.run(["nft", command], check=False).returncode, 0)  # noqa: B023
        assert lab.outside.ask(OWN, PORT, timeout=0.3).outcome == "refused"
        daemon.start()
        assert Load(lab.outside, OWN, PORT, count=1).end(wait=True).failed == 0
        with client(daemon) as api:
            assert api.get("/v1/status")["table"] == "intact"


def _flagged(lab: Lab) -> None:
    owned_table(lab, "other").close()


def _dormant(lab: Lab) -> None:
    lab.host.nft("table inet other { flags dormant; }")


@pytest.mark.parametrize("make", [_flagged, _dormant])
def test_another_programs_table_that_cannot_be_listed_is_left_alone(
    lab: Lab, old: None, start: Start, make: Callable[[Lab], None]
) -> None:
    """Which is no reason to make ours anew, or not to know it."""
    make(lab)
    daemon = start(web())
    chains = {name: chain["handle"] for name, chain in daemon.objects("chain").items()}
    with client(daemon) as api:
        assert api.get("/v1/status")["table"] == "intact"
    daemon.kill9()
    daemon.start()
    with client(daemon) as api:
        assert api.get("/v1/status")["table"] == "intact"
    assert {name: chain["handle"] for name, chain in daemon.objects("chain").items()} == chains
    lab.host.run(["nft", "delete element inet nfportd any4 { tcp . 8080 }"])
    daemon.wait_for("repaired:")
    assert daemon.elements("any4")
    assert "made anew" not in daemon.log
    assert daemon.stop() == 0
    assert "inet other" in lab.host.run(["nft", "list tables"]).stdout
