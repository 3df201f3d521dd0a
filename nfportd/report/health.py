"""What is wrong by the daemon's own status, as findings: what it is, why it matters, what to run.

Must not ask anybody. The one idea: a finding is a value of JSON with the keys severity (`error`, `warning`), what,
why, mappings and commands.
"""

from __future__ import annotations

from collections.abc import Iterator

from nfportd import printing
from nfportd.client import Json


def findings(status: Json) -> Iterator[Json]:
    """Everything in a status that keeps connections from their targets, the worst first."""
    if status["table"] != "intact":
        yield _finding("error", f"table inet nfportd is {status['table']}", "it is about to be repaired")
    if status["repairs"]["fight"]:
        why = f"what nfportd repairs is undone each time: {status['repairs']['last']}"
        yield _finding("error", "another program changes table inet nfportd again and again", why)
    for found in status["forwarding"]:
        verb = "stops" if found["certain"] else "may stop"
        what = f"chain {found['chain']} ({found['firewall']}) {verb} what is forwarded to {', '.join(found['targets'])}"
        severity = "error" if found["certain"] else "warning"
        yield _finding(severity, what, "; ".join(found["why"]), commands=found["commands"])
    for mapping in (*status["refused"], *status["port_in_use"], *status["conflicts"]):
        severity = "warning" if mapping["state"] == "conflict" else "error"
        why = "; ".join(printing.why_not(mapping))
        what = f"{printing.titled(mapping)} is not in force ({printing.state(mapping)})"
        yield _finding(severity, what, why, mappings=[mapping["name"] or printing.way(mapping)])
    for file, errors in status["files"].items():
        why = "its last good content stays in force; " + "; ".join(errors)
        yield _finding("error", f"drop-in {file} is broken", why, commands=["nfportd check"])
    for address in status["unreached"]:
        what = f"no route leads to target {address}"
        yield _finding("error", what, "connections to it fail", commands=[f"ip route get {address}"])


def _finding(
    severity: str, what: str, why: str, *, mappings: list[str] | None = None, commands: list[str] | None = None
) -> Json:
    return {"severity": severity, "what": what, "why": why, "mappings": mappings or [], "commands": commands or []}
