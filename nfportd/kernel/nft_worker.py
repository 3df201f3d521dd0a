"""The program that runs libnftables for the daemon, as its child: whatever becomes of it takes no state along.

Must not import nfportd, for it starts again after each crash. The one idea: texts come in over a socket, what nft
makes of each goes back; it ends with its parent.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import sys
from typing import Any

#: Flags of a request (those below) or the status of an answer (0: done), then the length of its text in bytes.
HEADER = struct.Struct("!BI")
JSON, TERSE, DRY_RUN, HANDLES = 1, 2, 4, 8

_NETLINK_NETFILTER = 12  # linux/netlink.h
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
#: Texts from this length on take 70 times their memory in the parser, listings more, and glibc would keep it.
_LARGE = 1_000_000
#: This process opens few.
_DESCRIPTORS = 64

_libc = ctypes.CDLL(None)


def main() -> None:
    """Answer what comes over the socket that argv names, until its other end has gone."""
    # A transaction of a daemon that has died must not meet the next one's.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[2]):
        return
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        try:
            _serve(channel)
        except ConnectionError:
            return  # its other end has gone


def _serve(channel: socket.socket) -> None:
    with channel.makefile("rwb") as stream:
        try:
            import nftables  # noqa: PLC0415 where it is missing, that is an answer like others

            # libnftables ends the process where it cannot open such a socket.
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER).close()
            nft = nftables.Nftables()
        except (OSError, ImportError) as error:
            why = getattr(error, "strerror", None) or error
            _answer(stream, 1, f"no libnftables, or no netlink socket for it: {why}".encode())
            return
        # The kernel gives a socket its port when something is sent. For most lists nft 1.0.6 fetches every element.
        nft.cmd("list flowtables inet")
        descriptor, port = _netlink()
        socket.send_fds(channel, [_packed(0, str(port).encode())], [descriptor])
        while header := stream.read(HEADER.size):
            flags, length = HEADER.unpack(header)
            status, text = _run(nft, flags, stream.read(length))
            _answer(stream, status, text)
            if max(length, len(text)) > _LARGE:
                _libc.malloc_trim(0)


def _answer(stream: Any, status: int, text: bytes) -> None:
    stream.write(_packed(status, text))
    stream.flush()


def _packed(status: int, text: bytes) -> bytes:
    return HEADER.pack(status, len(text)) + text


def _run(nft: Any, flags: int, text: bytes) -> tuple[int, bytes]:
    nft.set_json_output(bool(flags & JSON))
    nft.set_terse_output(bool(flags & TERSE))
    nft.set_dry_run(bool(flags & DRY_RUN))
    nft.set_handle_output(bool(flags & HANDLES))
    # Bytes for bytes: what others wrote into comments may be no UTF-8.
    status, output, error = nft.cmd(text)
    return (1, error) if status else (0, output)


def _netlink() -> tuple[int, int]:
    """The descriptor of libnftables' own socket, and its address, which the kernel's notifications name as cause."""
    for descriptor in range(_DESCRIPTORS):
        try:
            with socket.socket(fileno=os.dup(descriptor)) as sock:
                if sock.family == socket.AF_NETLINK and sock.proto == _NETLINK_NETFILTER:
                    return descriptor, int(sock.getsockname()[0])
        except OSError:  # not open, or no socket
            continue
    raise RuntimeError("libnftables has no netlink socket")


if __name__ == "__main__":
    main()
