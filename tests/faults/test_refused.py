"""The kernel refuses one element of many that are asked for over the API: its mapping's owner alone is refused.

Must not know how the one is found. The one idea: a map that an earlier run left has room for few elements (a set that
is full is refused by the kernel itself), and both wishes are in one transaction.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from nfportd.client import Problem
from tests.api.calling import OWN, body, client, mapping
from tests.faults.injection import Fault, injected
from tests.faults.truth import SOON, agreed
from tests.kernel.test_lifecycle import small_table
from tests.lab import Daemon, Lab

FIRST, FITS = body(mapping(8090)), body(mapping(8091))
TOO_MANY = body(*(mapping(port) for port in range(8100, 8104)))


def test_of_two_owners_in_one_transaction_one_is_refused(lab: Lab, daemon: Daemon) -> None:
    text = small_table(daemon, 4)
    daemon.stop()
    lab.host.nft(text)
    daemon.start()

    def put(owner: str) -> str:
        with client(daemon) as api:
            try:
                api.put(owner, {"first": FIRST, "fits": FITS, "many": TOO_MANY}[owner])
            except Problem as problem:
                return problem.name
        return "in force"

    with ThreadPoolExecutor(3) as pool, injected(daemon, Fault("sendmsg", 1, "SIGSTOP"), daemon.pid) as injection:
        answers = [pool.submit(put, "first")]
        assert injection.stopped()
        # What comes now waits together for the next transaction.
        for owner in ("many", "fits"):
            answers.append(pool.submit(put, owner))
            time.sleep(0.1)
        injection.go_on()
        told = [answer.result(SOON) for answer in answers]

    assert told == ["in force", "kernel-refused", "in force"]
    agreed(daemon, body(*FIRST["mappings"], *FITS["mappings"]))
    assert [lab.outside.ask(OWN, port).outcome for port in (8090, 8091, 8100)] == ["answered", "answered", "refused"]
    assert put("first") == "in force"
