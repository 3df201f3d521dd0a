"""A container image made here, and its clients: busybox's web server says which container it is and whom it saw.

It must not know runtimes. The one idea: an OCI image is a few JSON files and a tar, named by their digests; no
registry is needed.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.lab import endpoint
from tests.netns import Namespace
from tests.probes import Answer, plain

BUSYBOX = Path("/bin/busybox")
NAME = "localhost/nfportd-who:1"
WHO = """#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\n%s %s\\n' "$(hostname)" "$REMOTE_ADDR"
"""
#: What the image runs: a web server on every address, port 80.
SERVE = ["/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/www"]
OCI = "application/vnd.oci.image."
#: curl's exit statuses for a connection that came to nothing.
OUTCOMES = {7: "refused", 28: "timeout", 52: "reset", 56: "reset"}


def ask(space: Namespace, address: str, port: int = 80, timeout: float = 2) -> Answer:
    """Which container answers a web client, and which source it saw; or why none does."""
    url = f"http://{endpoint(address, port)}/cgi-bin/who"
    done = space.run(["curl", "-sS", "--noproxy", "*", "--max-time", str(timeout), url], check=False)
    if done.returncode:
        return Answer(OUTCOMES[done.returncode])
    name, source = done.stdout.split()
    return Answer("answered", name, plain(source.strip("[]")))


def wait(space: Namespace, addresses: Iterable[str]) -> None:
    """Until a container's server is up and its IPv6 address is known to be nobody else's."""
    until = time.monotonic() + 10
    for address in addresses:
        while not ask(space, address):
            assert time.monotonic() < until, f"{space.name} does not answer on {address}"
            time.sleep(0.02)


def archive(place: Path) -> Path:
    """Write the image as an OCI archive."""
    root = layer()
    config = _json({"architecture": "amd64", "os": "linux", "config": {"Cmd": SERVE, "Env": ["PATH=/bin"]},
                    "rootfs": {"type": "layers", "diff_ids": [_digest(root)]}})  # fmt: skip
    manifest = _json({"schemaVersion": 2, "mediaType": f"{OCI}manifest.v1+json",
                      "config": _described("config.v1+json", config),
                      "layers": [_described("layer.v1.tar", root)]})  # fmt: skip
    entry = _described("manifest.v1+json", manifest)
    entry["annotations"] = {"io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": NAME}
    with tarfile.open(place, "w") as tar:
        _add(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add(tar, "index.json", _json({"schemaVersion": 2, "manifests": [entry]}))
        for blob in (root, config, manifest):
            _add(tar, f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob)
    return place


def layer() -> bytes:
    """The root: busybox, the names that the image uses, and the page."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "www", "www/cgi-bin"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        _add(tar, "bin/busybox", BUSYBOX.read_bytes(), 0o755)
        for name in ("sh", "hostname", "sleep"):
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
        _add(tar, "www/cgi-bin/who", WHO.encode(), 0o755)
    return made.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


def _described(kind: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": f"{OCI}{kind}", "digest": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
