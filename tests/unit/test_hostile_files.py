"""Files made to hurt: each must be taken or refused in bounded time and memory, never by a crash.

It must not judge wording. The one idea: the daemon's reading in a process with limits on CPU time and memory.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable

import pytest

from nfportd import validation
from nfportd.errors import InvalidInput
from tests.unit.reading import refused

SECONDS = 5
MEBIBYTES = 512


def found_in(content: bytes) -> tuple[int, str]:
    """How many mappings, or how many problems and how long the longest."""
    try:
        return len(validation.mappings(content, "web.yaml")), "mappings"
    except InvalidInput as error:
        longest = max(len(str(problem)) for problem in error.problems)
        return len(error.problems), f"problems of {longest} characters"


def read_with_limits(content: bytes, seconds: int = SECONDS, mebibytes: int = MEBIBYTES) -> tuple[int, str]:
    """The same in a child with limits; fails when the child reaches them or does not survive the content."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_DATA, (mebibytes << 20, mebibytes << 20))
        try:
            os.write(writer, " ".join(map(str, found_in(content))).encode())
        except BaseException as error:
            os.write(writer, f"-1 crashed: {error!r}"[:2000].encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        number, _, rest = answer.read().partition(" ")
    _, status = os.waitpid(child, 0)
    assert status == 0, f"more than {seconds} s of CPU time, or a crash: status {os.waitstatus_to_exitcode(status)}"
    assert int(number) >= 0, rest
    return int(number), rest


def billion_laughs() -> str:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    return "\n".join(lines)


def merged_laughs() -> str:
    keys = ", ".join(f"k{n}: 1" for n in range(2000))
    return f"a: &a {{{keys}}}\nmappings:\n" + "  - {<<: *a, listen: 80}\n" * 20_000


ALL_PORTS = "- {listen: 1-65535, protocol: [tcp, udp, sctp], targets: 10.88.0.11:1-65535}\n"
ONE = "  - {listen: 192.0.2.1:80, targets: 10.88.0.11:80}\n"


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: "[" * 100_000, id="100,000 brackets"),
        pytest.param(lambda: "{a: " * 100_000, id="100,000 braces"),
        pytest.param(lambda: "- " * 100_000, id="100,000 dashes"),
        pytest.param(lambda: "? " * 100_000, id="100,000 question marks"),
        pytest.param(lambda: "a: &a [" + "[" * 100_000 + "]" * 100_001, id="anchored brackets"),
        pytest.param(billion_laughs, id="billion laughs"),
        pytest.param(merged_laughs, id="billion laughs by merge keys"),
        pytest.param(
            lambda: "mappings:\n- &a0 [x]\n" + "".join(f"- &a{n} [*a{n - 1}]\n" for n in range(1, 1300)),
            id="a chain of aliases",
        ),
        pytest.param(lambda: "\0" * 1_000_000, id="NUL"),
        pytest.param(lambda: "a" * 2_000_000, id="one long word"),
        pytest.param(lambda: "mappings:\n- listen: " + "9" * 2_000_000, id="a long number"),
        pytest.param(lambda: "mappings:\n- name: " + "a" * 2_000_000, id="a long name"),
        pytest.param(lambda: "mappings:\n- " + "a" * 1000 + ": 1\n", id="a long key"),
        pytest.param(lambda: "&" + "a" * 2_000_000 + " x\n", id="a long anchor"),
        pytest.param(lambda: "\n" * 2_000_000, id="empty lines"),
        pytest.param(lambda: "a: 1\n" * 100_000, id="duplicate keys"),
        pytest.param(lambda: "".join(f"lis{n}: 1\n" for n in range(100_000)), id="unknown keys in the file"),
        pytest.param(
            lambda: "mappings:\n- listen: 80\n" + "".join(f"  lis{n}: 1\n" for n in range(100_000)),
            id="unknown keys in a mapping",
        ),
        pytest.param(lambda: f"mappings:\n- listen: 80\n  targets: [{'1,' * 200_000}1]", id="many targets"),
        pytest.param(
            lambda: f"mappings:\n- listen: 80\n  targets: 10.88.0.11:80\n  protocol: [{'tcp,' * 200_000}udp]",
            id="many protocols",
        ),
        pytest.param(lambda: "mappings:\n" + "- {}\n" * 100_000, id="empty mappings"),
        pytest.param(lambda: "mappings:\n" + ONE * 10_000, id="one mapping 10,000 times"),
        pytest.param(lambda: "mappings:\n" + ALL_PORTS * 1000, id="one range of all ports 1,000 times"),
        pytest.param(lambda: "mappings: 5\n---\n" * 100_000, id="many documents"),
        pytest.param(lambda: "%YAML 1.1\n" * 100_000, id="many directives"),
    ],
)
def test_a_file_made_to_hurt_is_refused_in_a_screenful(make: Callable[[], str]) -> None:
    number, kind = read_with_limits(make().encode())

    assert (number <= 51, "mappings" in kind and number > 0) == (True, False)


def test_a_problem_is_no_longer_than_a_few_lines() -> None:
    content = b"mappings:\n- " + b"a" * 1000 + b": " + b"b" * 100_000 + b"\n  name: " + b"c" * 100_000

    _, kind = found_in(content)

    assert int(kind.split()[-2]) < 400


def test_what_a_file_may_claim_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "MAX_KEYS", 100)
    one = "- {listen: 192.0.2.1:1-60, targets: 10.88.0.11:1-60}\n"
    other = "- {listen: 192.0.2.2:1-60, targets: 10.88.0.11:1-60}\n"

    assert refused(f"mappings:\n{one}{other}") == ["web.yaml:3:3: mapping number 2: the file claims more than 100 keys"]
