"""The state that an OCI runtime hands to the hook, damaged: published as the annotation says, or refused in words.

It must not know how it is read. The one idea: a client that only listens stands for the daemon.
"""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given, strategies as st

from nfportd import oci_hook
from nfportd.oci_hook import NotPublished
from tests.fuzz import jsons
from tests.fuzz.budget import tries, within

_ENTRIES = (
    *("8080", "8080:80", "127.0.0.1:5353:53/udp", "[2001:db8::1]:8080:80", "20000-20009", "8000-8009:9000-9009/sctp"),
    *("", "80:", "80/", "80/icmp", "0", "65536", "9-8", "[", "[]:80", "[x]:80:80", "1.2.3:80", "1.2.3.4:80-90:80"),
    *("9" * 5000, "-", "1-2-3", "80:80:80", "\x1b", "\u0668", "::1:80"),
)  # fmt: skip
_entries = st.lists(st.sampled_from(_ENTRIES), max_size=4).map(", ".join)


def _state(ports: str) -> dict[str, Any]:
    return {"ociVersion": "1.0.2", "id": "3f2a", "status": "created", "pid": 4242, "bundle": "/x",
            "annotations": {oci_hook.ANNOTATION: ports}}  # fmt: skip


@tries(80)
@given(jsons.contents(_entries.map(_state)))
@example(b"[" * 100_000)
@example(b"\xff\xfe")
@example(json.dumps(_state("80") | {"pid": True}).encode())
def test_a_state_is_published_or_refused(content: bytes) -> None:
    client = mock.Mock()
    with mock.patch.object(oci_hook, "addresses", return_value={4: "10.88.0.11", 6: "fd88::11"}), within(2):
        try:
            oci_hook.publish(client, content)
        except NotPublished as error:
            told = str(error)
        else:
            told = ""
    if told:
        assert len(told) < 1000, told
        client.put.assert_not_called()
        return
    state = json.loads(content)
    for call in client.put.call_args_list:
        owner, body = call.args
        assert owner == f"oci:{state['id']}"
        assert (body["pid"], type(body["pid"])) == (state["pid"], int)
        assert len(body["mappings"]) == len(state["annotations"][oci_hook.ANNOTATION].replace(",", " ").split())
        assert json.loads(json.dumps(body), parse_constant=pytest.fail) == body
