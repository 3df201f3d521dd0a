"""How the tests have a connection explained or watched: inside the host, as `nfportctl trace` does it.

It must not know what is right. The one idea: an explanation and an answer on the wire are two values to be compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

from nfportd.kernel.nft import Nft
from nfportd.trace.facts import Explanation, Flow, parse
from nfportd.trace.reading import Reading
from tests.api.calling import client
from tests.lab import Daemon, Lab
from tests.probes import Answer

#: Seconds for a daemon that ends or a command that hangs.
_PATIENCE = 30


class Tracer:
    """Explains connections in the host; one libnftables for all of them."""

    def __init__(self, lab: Lab, daemon: Daemon) -> None:
        self._lab, self._daemon = lab, daemon
        self._runner = asyncio.Runner()
        self._nft = Nft()

    def close(self) -> None:
        self._nft.close()
        self._runner.close()

    def __call__(self, source: str, to: str) -> Explanation:
        flow = parse(source, to)
        with client(self._daemon) as api:
            return self._explained(flow, api.get("/v1/mappings", port=flow.port)["mappings"])

    def alone(self, source: str, to: str) -> Explanation:
        """The same while the daemon is away."""
        return self._explained(parse(source, to), None)

    def _explained(self, flow: Flow, mappings: list[dict[str, Any]] | None) -> Explanation:
        async def explained() -> Explanation:
            with contextlib.closing(Reading(self._nft)) as reading:
                return await reading.explain(flow, mappings)

        with self._lab.host.entered():
            return self._runner.run(explained())


@contextlib.contextmanager
def tracer(lab: Lab, daemon: Daemon) -> Iterator[Tracer]:
    made = Tracer(lab, daemon)
    try:
        yield made
    finally:
        made.close()


def command(daemon: Daemon, *arguments: str) -> list[str]:
    return [*Daemon.command("nfportctl"), "--socket", str(daemon.socket), "trace", *arguments]


def run(lab: Lab, daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return lab.host.run(command(daemon, *arguments), check=False)


def begin(lab: Lab, daemon: Daemon, *arguments: str) -> subprocess.Popen[str]:
    """A live trace that is ready for the packet."""
    process = lab.host.popen(
        command(daemon, "--live", *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert process.stderr
    said = process.stderr.readline()
    assert "make the connection now" in said, said + process.stderr.read()
    return process


def live(lab: Lab, daemon: Daemon, ask: Callable[[], Answer], *arguments: str) -> tuple[Answer, dict[str, Any]]:
    """What a client got, and what a live trace saw of it, with its exit status."""
    process = begin(lab, daemon, "--json", "--seconds", "5", *arguments)
    answer = ask()
    said, errors = process.communicate(timeout=_PATIENCE)
    assert not errors, errors
    return answer, json.loads(said) | {"status": process.returncode}


def last(found: Explanation) -> str:
    """What ended a connection, or let it pass with a doubt: `at: text`."""
    doubts = [step for step in found.steps if step.verdict != "passes"]
    return f"{doubts[-1].at}: {doubts[-1].text}" if doubts else ""
