"""The served description against the served API: what schemathesis makes of one must fit the other.

Must not know the resources. The one idea: requests are made from the description alone, good ones and bad ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nfportd.client import Client
from tests.api.bridge import bridged
from tests.api.calling import answers, body, mapping
from tests.lab import Daemon, Lab

pytest.importorskip("schemathesis")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "allow_header_conformance",
)


def test_the_api_is_as_it_is_described(lab: Lab, daemon: Daemon, api: Client, tmp_path: Path) -> None:
    """No 5xx, and no answer that the description does not allow. The stream of events never ends, and is left out."""
    program = Path(sys.prefix, "bin", "schemathesis")
    api.put("stays", body(mapping(8080)))
    with bridged(lab.client, daemon.socket) as url:
        command = [str(program), "run", f"{url}/openapi.json", "--checks", ",".join(CHECKS)]
        command += ["--phases", "examples,coverage,fuzzing", "--max-examples", "50", "--seed", "1"]
        command += ["--exclude-path", "/v1/events", "--request-timeout", "10", "--continue-on-failure", "--no-color"]
        environment = os.environ | {"HOME": str(tmp_path)}
        with lab.client.entered():
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, timeout=110, cwd=tmp_path, env=environment
            )

    assert done.returncode == 0, done.stdout[-12_000:] + done.stderr[-2_000:]
    assert daemon.process
    assert daemon.process.poll() is None
    assert "Traceback" not in daemon.log
    api.put("stays", body(mapping(8080, shadow_listener=True)))
    assert answers(lab, 8080) == "t1"
