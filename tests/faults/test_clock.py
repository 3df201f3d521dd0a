"""A wall clock that jumps under the real daemon, by hours, forth and back.

Must not know which clocks the daemon reads. The one idea: what counts down does so by time that passes; the date
matters where nothing else can be known any more, at a start.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from tests.api.calling import T1, T2, answers, body, client, eventually, mapping, states
from tests.api.test_events import following
from tests.conftest import dropin, mapping as written
from tests.lab import Daemon, Lab

HOURS = 3 * 3600
#: Shows a process another date, so many seconds off as a file that it shares says; CPython asks by this call alone.
SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

static volatile long long *jump;

__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("JUMP"), O_RDONLY | O_CLOEXEC);
    void *page = file < 0 ? MAP_FAILED : mmap(NULL, 8, PROT_READ, MAP_SHARED, file, 0);
    jump = page == MAP_FAILED ? NULL : page;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int (*next)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = next(clock, now);
    if (!failed && clock == CLOCK_REALTIME && jump)
        now->tv_sec += *jump;
    return failed;
}
"""


@pytest.fixture
def jumping(lab: Lab) -> Iterator[tuple[Daemon, Callable[[int], None]]]:
    """A daemon, not started, whose date can be set off by so many seconds; steady clocks are left as they are."""
    daemon = Daemon(lab)
    offset, library = daemon.dir / "offset", daemon.dir / "jumping.so"
    if not shutil.which("gcc"):
        pytest.skip("no compiler here")
    build = ["gcc", "-shared", "-fPIC", "-O1", "-x", "c", "-", "-o", str(library), "-ldl"]
    subprocess.run(build, input=SOURCE, text=True, check=True)
    daemon.prefix = ["env", f"LD_PRELOAD={library}", f"JUMP={offset}"]
    offset.write_bytes(bytes(8))

    def jump(seconds: int) -> None:
        with offset.open("r+b") as file:
            file.write(struct.pack("=q", seconds))

    try:
        yield daemon, jump
    finally:
        if daemon.process:
            daemon.stop()
        lab.daemons.remove(daemon)
        lab.reset()


def test_steps_of_the_clock(lab: Lab, jumping: tuple[Daemon, Callable[[int], None]]) -> None:
    daemon, jump = jumping
    (daemon.dropins / "web.yaml").write_text(dropin(written("web", 8080, T1)))
    daemon.start()
    with client(daemon) as api:
        api.put("hour", body(mapping(8081, T1), expires_in=3600))
        given = time.monotonic()
        api.put("short", body(mapping(8082, T1), expires_in=4))
        with following(daemon, 0) as follow:
            numbers = [follow()["seq"]]
            stamps = []
            for step, target in ((HOURS, T2), (-HOURS, T1)):
                jump(step)
                lab.host.nft("flush ruleset")
                eventually(lambda: [answers(lab, port) for port in (8080, 8081)], ["t1", "t1"])
                api.put("other", body(mapping(8083, target)))
                assert answers(lab, 8083) == target.replace(T1, "t1").replace(T2, "t2")
                while (event := follow())["owner"] != "other" or event["kind"] == "removed":
                    numbers.append(event["seq"])
                numbers.append(event["seq"])
                stamps.append(event["time"])
        assert numbers == sorted(set(numbers))
        # The daemon has seen both steps.
        assert stamps[0] > stamps[1], stamps
        eventually(lambda: "short 8082" in states(api), False)
        assert 4 <= time.monotonic() - given < 8
        assert states(api)["hour 8081"] == "active"

    # A start at an older date: who follows learns that it cannot know what it has missed.
    last = numbers[-1]
    jump(-2 * HOURS)
    daemon.kill9()
    daemon.start()
    with client(daemon) as api, following(daemon, last) as follow:
        assert states(api)["hour 8081"] == "active"
        assert follow()["kind"] == "lost"
        api.put("other", body(mapping(8084, T1)))
        assert any(follow().get("key") == "8084/tcp" for _ in range(12))
    # A start at a date after the deadline: it is over.
    jump(HOURS)
    daemon.kill9()
    daemon.start()
    with client(daemon) as api:
        assert states(api) == {"file:web.yaml 8080": "active", "other 8084": "active"}
    assert answers(lab, 8081) == "refused"
    assert "Traceback" not in daemon.log
