"""What the watch on the directory tells, by real inotify: each way in which editors and tools write files.

It must not read drop-ins. The one idea: a recorder notes what is told; after each act it must hear, or stay silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from nfportd.sources import watch

#: Longer than the grace that the tests give a vanished file.
QUIET = 0.15
#: For a busy machine; what is told comes within milliseconds.
PATIENCE = 5.0

Story = Callable[["Recorder", Path], Awaitable[None]]


class Recorder:
    """What a watch has told since it was asked last."""

    def __init__(self, directory: Path) -> None:
        self._told: asyncio.Queue[watch.Names] = asyncio.Queue()
        self._task = asyncio.create_task(self._listen(directory))

    async def _listen(self, directory: Path) -> None:
        async for names in watch.changed(directory):
            self._told.put_nowait(names)

    async def next(self) -> watch.Names:
        """The next thing that is told."""
        async with asyncio.timeout(PATIENCE):
            return await self._told.get()

    async def until(self, wanted: watch.Names) -> None:
        """Hear things until this one is told."""
        async with asyncio.timeout(PATIENCE):
            while await self._told.get() != wanted:
                pass

    async def all(self) -> set[str | None]:
        """Every name told until there is quiet; None stands for all names."""
        await asyncio.sleep(QUIET)
        found: set[str | None] = set()
        while not self._told.empty():
            names = self._told.get_nowait()
            found |= {None} if names is None else names
        return found

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


@contextlib.asynccontextmanager
async def recording(directory: Path) -> AsyncIterator[Recorder]:
    """A watch that has told its first word."""
    recorder = Recorder(directory)
    try:
        assert await recorder.next() is None, "what was there before the watch is read once"
        yield recorder
    finally:
        await recorder.close()


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "GRACE", 0.05)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "etc" / "nfportd.d"
    made.mkdir(parents=True)
    (made / "old.yaml").write_text("old")
    return made


def tells(directory: Path, act: Callable[[Path], object]) -> set[str | None]:
    """What is told of an act in the directory."""

    async def story() -> set[str | None]:
        async with recording(directory) as recorder:
            act(directory)
            return await recorder.all()

    return asyncio.run(story())


def written_in_place(directory: Path) -> None:
    (directory / "web.yaml").write_text("x")


def renamed_into_place(directory: Path) -> None:
    (directory.parent / "draft").write_text("x")
    (directory.parent / "draft").rename(directory / "web.yaml")


def copied(directory: Path) -> None:
    shutil.copy2(directory / "old.yaml", directory / "web.yaml")


def hard_linked(directory: Path) -> None:
    (directory / "web.yaml").hardlink_to(directory / "old.yaml")


def symlinked(directory: Path) -> None:
    (directory / "web.yaml").symlink_to("old.yaml")


def link_switched(directory: Path) -> None:
    (directory.parent / "link").symlink_to("old.yaml")
    (directory.parent / "link").rename(directory / "web.yaml")


def saved_by_vim(directory: Path) -> None:
    """The old file is renamed away, the new one written, the backup removed."""
    (directory / "web.yaml").write_text("x")
    (directory / "web.yaml").rename(directory / "web.yaml~")
    (directory / "web.yaml").write_text("y")
    (directory / "web.yaml~").unlink()


@pytest.mark.parametrize(
    "act",
    [written_in_place, renamed_into_place, copied, hard_linked, symlinked, link_switched, saved_by_vim],
)
def test_a_new_file_is_told(directory: Path, act: Callable[[Path], object]) -> None:
    assert tells(directory, act) - {"web.yaml~"} == {"web.yaml"}


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda d: (d / "old.yaml").write_text("new"), id="written again"),
        pytest.param(lambda d: (d / "old.yaml").open("a").close(), id="opened for writing"),
        pytest.param(lambda d: (d / "old.yaml").unlink(), id="removed"),
        pytest.param(lambda d: (d / "old.yaml").rename(d.parent / "elsewhere"), id="renamed away"),
        pytest.param(lambda d: (d / "old.yaml").open("w").close(), id="emptied"),
    ],
)
def test_a_changed_file_is_told(directory: Path, act: Callable[[Path], object]) -> None:
    assert tells(directory, act) == {"old.yaml"}


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda d: (d / "old.yaml").read_text(), id="read"),
        pytest.param(lambda d: list(d.iterdir()), id="listed"),
        pytest.param(lambda d: (d / "old.yaml").stat(), id="looked at"),
        pytest.param(lambda d: None, id="left alone"),
    ],
)
def test_what_changes_nothing_is_not_told(directory: Path, act: Callable[[Path], object]) -> None:
    assert tells(directory, act) == set()


def test_both_names_of_a_rename_are_told(directory: Path) -> None:
    assert tells(directory, lambda d: (d / "old.yaml").rename(d / "new.yaml")) == {"old.yaml", "new.yaml"}


def test_a_file_that_is_still_being_written_is_not_told(directory: Path) -> None:
    async def story() -> tuple[set[str | None], set[str | None]]:
        async with recording(directory) as recorder:
            with (directory / "web.yaml").open("w") as file:
                file.write("half of it")
                file.flush()
                early = await recorder.all()
            return early, await recorder.all()

    assert asyncio.run(story()) == (set(), {"web.yaml"})


def test_files_written_together_are_told_together(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "SETTLE", 0.05)

    async def story() -> watch.Names:
        async with recording(directory) as recorder:
            for name in ("a.yaml", "b.yaml", "c.yaml"):
                (directory / name).write_text("x")
            return await recorder.next()

    assert asyncio.run(story()) == frozenset({"a.yaml", "b.yaml", "c.yaml"})


def test_a_file_that_comes_back_within_the_grace_is_told_once(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "GRACE", 1.0)

    async def story() -> tuple[watch.Names, bool]:
        async with recording(directory) as recorder:
            (directory / "old.yaml").rename(directory / "old.bak")
            await recorder.until(frozenset({"old.bak"}))
            (directory / "old.yaml").write_text("new")
            return await recorder.next(), (directory / "old.yaml").exists()

    assert asyncio.run(story()) == (frozenset({"old.yaml"}), True)


def test_many_writes_are_all_told(directory: Path) -> None:
    names = {f"{number}.yaml" for number in range(500)}

    async def story() -> set[str]:
        found: set[str] = set()
        async with recording(directory) as recorder:
            for name in names:
                (directory / name).write_text("x")
            while len(found) < len(names):
                found |= await recorder.next() or set()
        return found

    assert asyncio.run(story()) == names


def test_an_overflow_of_events_tells_everything(directory: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 50_000:
        pytest.skip(f"the queue holds {limit} events")

    async def story() -> None:
        async with recording(directory) as recorder:
            for _ in range(limit // 6 + 100):  # created, written, removed: three events each
                for name in ("a.yaml", "b.yaml"):
                    (directory / name).touch()
                    (directory / name).unlink()
            await recorder.until(None)

    asyncio.run(story())


def test_a_directory_that_appears_later(tmp_path: Path) -> None:
    directory = tmp_path / "nfportd.d"

    async def story() -> set[str | None]:
        async with recording(directory) as recorder:
            directory.mkdir()
            await recorder.until(None)
            await recorder.all()
            (directory / "web.yaml").write_text("x")
            return await recorder.all()

    assert asyncio.run(story()) == {"web.yaml"}


def test_a_directory_that_appears_with_those_above_it(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b" / "nfportd.d"

    async def story() -> set[str | None]:
        async with recording(directory) as recorder:
            directory.mkdir(parents=True)
            await recorder.all()
            (directory / "web.yaml").write_text("x")
            return await recorder.all()

    assert asyncio.run(story()) == {"web.yaml"}


def test_a_directory_that_is_renamed_into_place(tmp_path: Path) -> None:
    directory, draft = tmp_path / "nfportd.d", tmp_path / "draft"
    draft.mkdir()
    (draft / "web.yaml").write_text("x")

    async def story() -> set[str | None]:
        async with recording(directory) as recorder:
            draft.rename(directory)
            return await recorder.all()

    assert asyncio.run(story()) == {None}


def test_a_directory_that_is_replaced_is_read_anew_and_watched(directory: Path) -> None:
    draft = directory.parent / "draft"
    draft.mkdir()

    def swap() -> None:
        directory.rename(directory.parent / "old")
        draft.rename(directory)

    async def story() -> set[str | None]:
        async with recording(directory) as recorder:
            swap()
            await recorder.until(None)
            await recorder.all()
            (directory / "web.yaml").write_text("x")
            return await recorder.all()

    assert asyncio.run(story()) == {"web.yaml"}


def test_a_directory_that_is_removed_is_told_and_may_come_back(directory: Path) -> None:
    async def story() -> tuple[watch.Names, set[str | None]]:
        async with recording(directory) as recorder:
            shutil.rmtree(directory)
            await recorder.until(None)
            await recorder.all()
            await asyncio.to_thread(directory.mkdir)
            told = await recorder.next()
            await recorder.all()
            (directory / "web.yaml").write_text("x")
            return told, await recorder.all()

    assert asyncio.run(story()) == (None, {"web.yaml"})


def test_a_file_in_the_place_of_the_directory_gives_way(tmp_path: Path) -> None:
    directory = tmp_path / "nfportd.d"
    directory.write_text("in the way")

    async def story() -> set[str | None]:
        async with recording(directory) as recorder:
            directory.unlink()
            directory.mkdir()
            await recorder.all()
            (directory / "web.yaml").write_text("x")
            return await recorder.all()

    assert asyncio.run(story()) == {"web.yaml"}


def test_a_watch_that_ends_leaves_nothing_open(directory: Path) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def story() -> tuple[int, int]:
        before = open_files()
        for _ in range(5):
            async with recording(directory):
                pass
        await asyncio.sleep(0)
        return before, open_files()

    before, after = asyncio.run(story())
    assert after <= before + 1
