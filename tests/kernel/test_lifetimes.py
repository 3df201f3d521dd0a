"""Owners that end with a network namespace, by real namespaces that come and go in all the ways there are.

It must not know mappings. The one idea: follow a path, take the namespace away as tools do, and hear who is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from nfportd.kernel import netns_paths
from nfportd.kernel.lifetimes import Lifetimes, incarnation
from tests.lab import Lab
from tests.netns import NETNS, Namespace, ip
from tests.told import PATIENCE, Told

pytestmark = pytest.mark.alone

Story = Callable[[Lifetimes, Told], Awaitable[None]]


def play(story: Story) -> None:
    async def whole() -> None:
        told = Told()
        with contextlib.closing(Lifetimes(told)) as lifetimes:
            await story(lifetimes, told)

    asyncio.run(whole())


def bind(lifetimes: Lifetimes, owner: str, path: str | Path) -> None:
    lifetimes.follow(owner, deadline=None, pid=None, netns=str(path))


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def lab() -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with Lab(build=False) as made:
        yield made


@pytest.fixture
def mounts(lab: Lab) -> Iterator[Path]:
    """A directory for bind mounts, as a container engine has one of its own."""
    directory = lab.tmp / "netns"
    directory.mkdir()
    yield directory
    for place in sorted(directory.parent.rglob("*")):
        subprocess.run(["umount", "-l", place], check=False, capture_output=True)


def path(space: Namespace) -> Path:
    return NETNS / space.full


def mount(space: Namespace, place: Path) -> Path:
    place.touch()
    run("mount", "--bind", path(space), place)
    return place


def test_a_deleted_namespace_ends_its_owners_and_no_others(lab: Lab) -> None:
    blue, red = lab.space("blue"), lab.space("red")

    async def story(lifetimes: Lifetimes, told: Told) -> None:
        for owner in ("a", "b"):
            bind(lifetimes, owner, path(blue))
        bind(lifetimes, "c", path(red))
        bind(lifetimes, "d", f"/var{path(blue)}")  # the same by another path
        lab.discard("blue")

        ends = sorted([await told.next() for _ in range(3)])
        gone = f"network namespace {path(blue)} is gone"
        assert ends == [("a", gone), ("b", gone), ("d", gone.replace("/run", "/var/run"))]
        assert await told.rest() == []

    if not Path(f"/var{NETNS}").exists():
        pytest.skip("/var/run is not /run here")
    play(story)


def test_it_is_told_soon(lab: Lab) -> None:
    blue = lab.space("blue")

    async def story(lifetimes: Lifetimes, told: Told) -> None:
        bind(lifetimes, "a", path(blue))
        ip("netns", "delete", blue.full)
        before = time.monotonic()
        await told.next()

        assert time.monotonic() - before < 0.05

    play(story)


@pytest.mark.parametrize("command", [("umount",), ("umount", "-l")])
def test_an_unmounted_namespace_ends_its_owner(lab: Lab, mounts: Path, command: tuple[str, ...]) -> None:
    place = mount(lab.space("blue"), mounts / "ns")

    async def story(lifetimes: Lifetimes, told: Told) -> None:
        bind(lifetimes, "a", place)
        run(*command, place)

        assert await told.next() == ("a", f"network namespace {place} is gone")

    play(story)


def test_a_path_that_is_given_another_namespace_ends_its_owner(lab: Lab, mounts: Path) -> None:
    blue, red = lab.space("blue"), lab.space("red")
    place = mount(blue, mounts / "ns")

    async def story(lifetimes: Lifetimes, told: Told) -> None:
        bind(lifetimes, "a", place)
        run("umount", place)
        mount(red, place)
        bind(lifetimes, "b", place)

        assert ((await told.next())[0], await told.rest()) == ("a", [])
        run("umount", place)
        assert (await told.next())[0] == "b"

    play(story)


def test_a_namespace_that_was_covered_by_another_ends_its_owner(lab: Lab, mounts: Path) -> None:
    place = mount(lab.space("blue"), mounts / "ns")

    async def story(lifetimes: Lifetimes, told: Told) -> None:
        bind(lifetimes, "a", place)
        run("mount", "--bind", path(lab.space("red")), place)

        assert (await told.next())[0] == "a"
        run("umount", place)

    play(story)


def test_a_removed_directory_ends_all_that_were_in_it(lab: Lab, mounts: Path) -> None:
    blue = lab.space("blue")

    async def story(lifetimes: Lifetimes, told: Told) -> None:
        for name in ("a", "b"):
            bind(lifetimes, name, mount(blue, mounts / name))
        run("mv", mounts, mounts.with_name("moved"))

        assert {(await told.next())[0], (await told.next())[0]} == {"a", "b"}
        assert await told.rest() == []

    play(story)


def test_a_namespace_made_anew_by_the_same_name_is_another(lab: Lab) -> None:
    """The kernel gives the new one the inode number of the old one."""
    blue = lab.space("blue")

    async def story(lifetimes: Lifetimes, told: Told) -> None:
        bind(lifetimes, "old", path(blue))
        bind(lifetimes, "renewed", path(blue))
        before = incarnation(pid=None, netns=str(path(blue)))
        ip("netns", "delete", blue.full)
        ip("netns", "add", blue.full)
        # Nothing of what happened has been read yet.
        bind(lifetimes, "new", path(blue))
        bind(lifetimes, "renewed", path(blue))

        assert ((await told.next())[0], await told.rest()) == ("old", [])
        assert before != incarnation(pid=None, netns=str(path(blue)))
        ip("netns", "delete", blue.full)
        assert {(await told.next())[0], (await told.next())[0]} == {"new", "renewed"}

    play(story)


def test_following_keeps_no_namespace_alive(lab: Lab) -> None:
    host, blue = lab.space("host"), lab.space("blue")
    lab.link(host, "veth-blue", blue, "eth0")

    async def story(lifetimes: Lifetimes, told: Told) -> None:
        bind(lifetimes, "a", path(blue))
        await asyncio.sleep(0.05)
        ip("netns", "delete", blue.full)
        await told.next()
        for _ in range(100):  # the kernel takes namespaces down in its own time
            if "veth-blue" not in host.ip("-br", "link"):
                break
            await asyncio.sleep(PATIENCE / 100)

        assert "veth-blue" not in host.ip("-br", "link"), "its links go only with the namespace itself"

    play(story)


def test_a_path_of_a_process_ends_with_the_process(lab: Lab, mounts: Path) -> None:
    blue = lab.space("blue")
    process = blue.popen(["sleep", "60"])
    link = mounts / "link"
    link.symlink_to(f"/proc/{process.pid}/ns/net")

    async def story(lifetimes: Lifetimes, told: Told) -> None:
        bind(lifetimes, "a", f"/proc/{process.pid}/ns/net")
        bind(lifetimes, "b", f"/proc/{process.pid}/task/{process.pid}/ns/net")
        bind(lifetimes, "c", link)
        assert await told.rest() == []
        process.kill()

        assert sorted([(await told.next())[0] for _ in range(3)]) == ["a", "b", "c"]

    play(story)


def test_a_link_to_a_namespace_is_followed_to_its_end(lab: Lab, mounts: Path) -> None:
    blue = lab.space("blue")
    link = mounts / "link"
    link.symlink_to(path(blue))

    async def story(lifetimes: Lifetimes, told: Told) -> None:
        bind(lifetimes, "a", link)
        lab.discard("blue")

        assert (await told.next())[0] == "a"

    play(story)


def test_the_namespace_or_the_process_whichever_ends_first(lab: Lab) -> None:
    blue, red = lab.space("blue"), lab.space("red")
    one, other = blue.popen(["sleep", "60"]), red.popen(["sleep", "60"])

    async def story(lifetimes: Lifetimes, told: Told) -> None:
        lifetimes.follow("a", deadline=None, pid=one.pid, netns=str(path(blue)))
        lifetimes.follow("b", deadline=None, pid=other.pid, netns=str(path(red)))
        one.kill()
        assert (await told.next())[0] == "a"
        ip("netns", "delete", red.full)
        assert (await told.next(), await told.rest()) == (("b", f"network namespace {path(red)} is gone"), [])

    play(story)


def test_what_leads_to_no_network_namespace_is_refused(lab: Lab, mounts: Path) -> None:
    plain, pipe, other = mounts / "plain", mounts / "pipe", mounts / "uts"
    plain.touch()
    os.mkfifo(pipe)
    other.touch()
    run("mount", "--bind", "/proc/self/ns/uts", other)
    places: list[Path | str] = [
        plain,
        pipe,
        other,
        mounts,
        mounts / "missing",
        plain / "below",
        "relative",
        "/proc/self/ns/net",
    ]
    places += ["/proc/self/ns/uts", "/proc/4194305/ns/net", "/run/net\0ns", "/" + "x" * 5000, "/dev/zero"]

    async def story(lifetimes: Lifetimes, told: Told) -> None:
        for place in places:
            with pytest.raises(ValueError, match=r"namespace|path|process|byte"):
                bind(lifetimes, "a", place)
        assert await told.rest() == []

    play(story)


def test_mounts_that_come_and_go_elsewhere_end_nobody(lab: Lab, mounts: Path) -> None:
    blue = lab.space("blue")

    async def story(lifetimes: Lifetimes, told: Told) -> None:
        bind(lifetimes, "a", path(blue))
        for _ in range(5):
            run("umount", mount(blue, mounts / "ns"))
        (NETNS / f"{blue.full}-other").touch()
        (NETNS / f"{blue.full}-other").unlink()

        assert await told.rest() == []

    play(story)


def test_many_paths_are_looked_at_in_turns(lab: Lab, mounts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netns_paths, "_SLICE", 3)
    blue = lab.space("blue")

    async def story(lifetimes: Lifetimes, told: Told) -> None:
        places = [mount(blue, mounts / f"{number}") for number in range(10)]
        for place in places:
            bind(lifetimes, place.name, place)
        for place in places[:9]:
            run("umount", place)
            await asyncio.sleep(0.01)

        assert sorted([(await told.next())[0] for _ in range(9)]) == [place.name for place in places[:9]]
        assert await told.rest() == []

    play(story)


def test_a_forgotten_path_is_watched_no_more(lab: Lab) -> None:
    blue = lab.space("blue")

    def watches() -> int:
        return sum(
            info.read_text().count("inotify wd:") for info in Path("/proc/self/fdinfo").iterdir() if info.exists()
        )

    async def story(lifetimes: Lifetimes, told: Told) -> None:
        before = watches()
        bind(lifetimes, "a", path(blue))
        bind(lifetimes, "b", path(blue))
        lifetimes.forget("a")
        one = watches()
        lifetimes.follow("b", deadline=time.time() + 3600, pid=None, netns=None)
        assert (one - before, watches() - before) == (1, 0)
        lab.discard("blue")
        assert await told.rest() == []

    play(story)


def test_close_leaves_nothing_open(lab: Lab) -> None:
    blue = lab.space("blue")

    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def story(_: Lifetimes, told: Told) -> None:
        before = open_files()
        for _round in range(3):
            with contextlib.closing(Lifetimes(told)) as lifetimes:
                bind(lifetimes, "a", path(blue))
        assert open_files() == before
        lab.discard("blue")
        assert await told.rest() == []

    play(story)
