"""Carries what owners wish to where it holds: wishes -> store -> kernel -> answers.

Must not know where wishes come from. The one idea: whatever arrives while a transaction runs goes together into the
next one, and each wish is answered when the store and the kernel have it. Nothing is listed on the way of a change.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from collections import deque
from collections.abc import Awaitable, Iterable, Mapping as AbstractMapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from nfportd.desired import Claim, Touched
from nfportd.enforcer import Enforcer, Kernel, Watcher
from nfportd.errors import KernelRefused, NfportdError
from nfportd.model import Key
from nfportd.register import Change, Register
from nfportd.wishes import Held, NotStored, Outcome, PortInUse, Waiting, Wish

_log = logging.getLogger(__name__)

#: Seconds after a failure before the next attempt, whatever asks for it, and before the same is said of it again.
_BREATH, _SILENCE = 1.0, 10.0


class Keeper(Protocol):
    """Where promised contents are written down before they come into force."""

    def keep(self, held: AbstractMapping[str, Held | None]) -> Awaitable[None]:
        """Write down what these owners hold, all or none. Raises NotStored."""


class Observer(Watcher, Protocol):
    """Who is told what happened."""

    def fulfilled(self, change: Change, waiting: Iterable[Waiting]) -> None:
        """A wish came true, but for what waits."""


@dataclass(slots=True)
class _Request:
    wish: Wish
    answer: asyncio.Future[Outcome]
    change: Change | None = None
    #: Whether it was refused together with others, which may have taken the room that it needs.
    alone: bool = False

    def refuse(self, error: NfportdError) -> None:
        self.change = None
        if not self.answer.done():
            self.answer.set_exception(error)

    def grant(self, outcome: Outcome) -> None:
        if not self.answer.done():
            self.answer.set_result(outcome)


class Reconciler:
    """Keeps the table in the kernel equal to what the owners wish."""

    def __init__(self, register: Register, kernel: Kernel, keeper: Keeper, observer: Observer) -> None:
        self.register = register
        self.enforcer = Enforcer(register.desired, kernel, observer)
        self._desired = register.desired
        self._table, self._ports = kernel.table, kernel.ports
        self._keeper = keeper
        self._observer = observer
        self._queue: deque[_Request] = deque()
        self._wake = kernel.wake
        self._heard = False
        # What was said of the last pass that failed, and when.
        self._complaint = ("", 0.0)

    async def fulfil(self, wish: Wish) -> Outcome:
        """Bring a wish into force; returns when the store and the kernel have it.

        Raises KeyTaken, PortInUse, PreconditionFailed, NotStored or KernelRefused for a promised wish that cannot come
        true, and then nothing of it is in force. Of other wishes, what waits or is refused is in the outcome.
        """
        request = _Request(wish, asyncio.get_running_loop().create_future())
        self._queue.append(request)
        self._wake.set()
        return await request.answer

    async def beat(self) -> None:
        """Return once the loop below has come round and nft has answered. Not before the first wish of a start."""
        await self.fulfil(Wish(owners={}))
        await self._table.answers()

    async def run(self) -> None:
        """Work until cancelled: take what has arrived, bring it into force, answer."""
        while True:
            await self._wait()
            batch = self._next_batch()
            try:
                await self._pass(batch)
            except Exception as error:
                self._complain(error)
                await self._give_up(batch, error)
                await asyncio.sleep(_BREATH)

    def _next_batch(self) -> list[_Request]:
        """What has arrived, up to a second wish of the same owner (each must be able to be undone), or one alone."""
        owners: set[str] = set()
        batch: list[_Request] = []
        while self._queue and not owners & self._queue[0].wish.owners.keys():
            if batch and (batch[-1].alone or self._queue[0].alone):
                break
            batch.append(self._queue.popleft())
            owners |= batch[-1].wish.owners.keys()
        return batch

    def _complain(self, error: Exception) -> None:
        """Log why a pass failed; the same again only after a while."""
        now = time.monotonic()
        if str(error) == self._complaint[0] and now - self._complaint[1] < _SILENCE:
            return
        self._complaint = (str(error), now)
        # What nft or the system said is enough; anything else nobody has foreseen.
        known = isinstance(error, KernelRefused | OSError)
        _log.error("what is wished could not be brought into force: %s", error, exc_info=not known)

    async def _give_up(self, batch: Sequence[_Request], error: Exception) -> None:
        """Undo the wishes of a batch that failed: the promised ones are refused, the others go first next time."""
        self.enforcer.compare_all = True
        before: dict[str, Held | None] = {}
        open_ones = [request for request in batch if not request.answer.done()]
        for request in reversed(open_ones):
            if request.change:
                self._undo(request.change)
                if request.wish.promised:
                    before |= request.change.before
                request.change = None
        with contextlib.suppress(NotStored):
            await self._keeper.keep(before)
        for request in open_ones:
            if request.wish.promised and not request.answer.done():
                request.answer.set_exception(error)
        self._queue.extendleft(request for request in reversed(open_ones) if not request.answer.done())

    async def _wait(self) -> None:
        """Until a wish has arrived, the kernel is no longer as desired, or it is time to try again what failed."""
        while not self._heard:
            # An adopted table must not be emptied just because nobody has wished for anything yet.
            await self._wake.wait()
            self._wake.clear()
            self._heard = bool(self._queue)
        while not self._queue and (due := self.enforcer.due()) != 0.0:
            try:
                async with asyncio.timeout(due):
                    await self._wake.wait()
            except TimeoutError:
                return
            self._wake.clear()

    async def _pass(self, batch: Sequence[_Request]) -> None:
        taken = [request for request in batch if self._take(request)]
        await self._keep(taken)
        taken = [request for request in taken if request.change]
        touched: Touched = {}
        for request in taken:
            assert request.change
            for key, holder in request.change.touched.items():
                # The first holder of a key is the one that the kernel knows.
                touched.setdefault(key, holder)
        if not batch:
            touched |= self.enforcer.again()
        refused = await self.enforcer.enforce(touched, retried=not batch)
        if any(self._broken(request, refused) for request in taken):
            taken = await self._take_back(taken, refused)
        self._ports.release(key for key in touched if not self._reserves(key))
        for request in taken:
            outcome = self._outcome(request, refused)
            if request.change:
                self._observer.fulfilled(request.change, outcome.waiting)
            request.grant(outcome)

    def _take(self, request: _Request) -> bool:
        """Enter a wish; one that may not be, or that only asks, is answered."""
        try:
            change = self.register.take(request.wish, time.time(), self.enforcer.in_force, self._ports.listening)
        except NfportdError as refusal:
            request.refuse(refusal)
            return False
        if request.wish.dry_run:
            request.change = change
            outcome = self._outcome(request, {})
            self.register.undo(change)
            request.grant(outcome)
            return False
        try:
            self._reserve(change.touched, promised=request.wish.promised)
        except (PortInUse, KernelRefused) as refusal:
            self._undo(change)
            request.refuse(refusal)
            return False
        request.change = change
        return True

    def _undo(self, change: Change) -> Touched:
        touched = self.register.undo(change)
        self._ports.release(key for key in touched if not self._reserves(key))
        return touched

    def _reserve(self, keys: Iterable[Key], *, promised: bool) -> None:
        reserved = [key for key in keys if self._reserves(key)]
        for key, error in self._ports.reserve(reserved).items():
            if promised and error.errno == errno.EADDRINUSE:
                raise PortInUse(key, key.address or "any", None)
            if promised:
                raise KernelRefused(f"cannot be reserved: {error.strerror}")
            _log.error("%s cannot be reserved: %s; %s is in force without", key, error, self._desired.holder(key))

    def _reserves(self, key: Key) -> bool:
        holder = self._desired.holder(key)
        return holder is not None and holder.mapping.reserve

    async def _keep(self, taken: Sequence[_Request]) -> None:
        """Write the promised contents down before they come into force; without that they are taken back."""
        promised = [request for request in taken if request.wish.promised]
        held = {owner: self.register.held.get(owner) for request in promised for owner in request.wish.owners}
        if not held:
            return
        try:
            await self._write(held, [request.change for request in promised if request.change])
        except NotStored as error:
            # A later wish of this batch may name what is taken back here as the holder before it.
            self.enforcer.compare_all = True
            for request in reversed(promised):
                if request.change:
                    self._undo(request.change)
                request.refuse(error)

    async def _write(self, held: AbstractMapping[str, Held | None], changes: Sequence[Change]) -> None:
        """Write down; what others undo meanwhile is repaired as if these changes had not come. Raises NotStored."""
        writing = asyncio.ensure_future(self._keeper.keep(held))
        writing.add_done_callback(lambda _: self._wake.set())
        try:
            while not writing.done():
                due = self.enforcer.due()
                if due == 0.0:
                    await self._repair_without(changes)
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(due):
                        await self._wake.wait()
                # Whoever wishes is in the queue by now.
                self._wake.clear()
            await writing
        finally:
            writing.cancel()

    async def _repair_without(self, changes: Sequence[Change]) -> None:
        # Of different owners, so their order does not matter.
        after = [{owner: self.register.held.get(owner) for owner in change.before} for change in changes]
        for change in changes:
            self.register.undo(change)
        try:
            await self.enforcer.enforce({}, retried=False)
        except Exception as error:
            # The enforcer says when it may be tried again.
            _log.error("what others have undone could not be repaired: %s", error)
        finally:
            for change, held in zip(changes, after, strict=True):
                self.register.undo(replace(change, before=held))

    def _broken(self, request: _Request, refused: AbstractMapping[Claim, str]) -> bool:
        return request.wish.promised and any(claim.owner in request.wish.owners for claim in refused)

    async def _take_back(self, taken: list[_Request], refused: AbstractMapping[Claim, str]) -> list[_Request]:
        """Undo the promised wishes of a batch in which the kernel refused one; return the other wishes.

        One that was refused alone is answered; the others are tried again, those that were refused one by one.
        """
        touched: Touched = {}
        restored: dict[str, Held | None] = {}
        promised = [request for request in taken if request.wish.promised]
        for request in reversed(promised):
            assert request.change
            touched |= self._undo(request.change)
            restored |= request.change.before
            # Undone once: the next pass may fail as well.
            request.change = None
        await self._keeper.keep(restored)
        await self.enforcer.enforce(touched, retried=False)
        for request in promised:
            if not self._broken(request, refused):
                continue
            if len(promised) > 1:
                request.alone = True
            else:
                reason = next(reason for claim, reason in refused.items() if claim.owner in request.wish.owners)
                request.refuse(KernelRefused(reason))
        again = (request for request in promised if not request.answer.done())
        self._queue.extendleft(sorted(again, key=lambda request: request.alone, reverse=True))
        return [request for request in taken if request not in promised]

    def _outcome(self, request: _Request, refused: AbstractMapping[Claim, str]) -> Outcome:
        assert request.change
        change, owners = request.change, request.wish.owners
        waiting = [each for each in self.register.waiting(change.touched) if each.claim.owner in owners]
        mine = {claim: reason for claim, reason in refused.items() if claim.owner in owners}
        blocked = {key: who for key, who in self._desired.blocked.items() if key in change.touched}
        held = {owner: self.register.held.get(owner) for owner in owners}
        return Outcome(change.added, change.removed, waiting, mine, blocked, change.shadowed, held)
