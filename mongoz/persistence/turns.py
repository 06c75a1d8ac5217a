"""Turns: overlapping calls of one instance run one after another.

Two tasks may save one instance at the same time. Each call of an instance takes a turn, which waits for the
earlier turns of the same instance. A call that a receiver makes inside of a turn does not wait for that turn.
"""

import asyncio
from asyncio import get_running_loop
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import suppress
from contextvars import ContextVar, Token
from typing import Any, Final, TypeVar

from mongoz.connection.transactions import is_in_transaction, session_of_call
from mongoz.sync import blocked_loops

__all__ = ["Turn", "run_in_turn", "run_in_turns"]

T = TypeVar("T")

_FOREIGN_LOOP_SECONDS: Final = 0.5
"""Seconds between two checks whether another event loop still runs, while a call waits for a turn of that loop."""


class Turn:
    """One call of one instance.

    Attributes:
        instance: the instance, or the instances of `run_in_turns`; None after the turn has ended, or was cancelled
            while it waited.
        outer: the innermost turn whose receivers make this call.
        place: the id of the queue, which is the id of the instance, or of an outer turn of the same instance.
        loop: the event loop of the call.
        before: the turn that must end before this one begins.
        session: the session of the call's transaction.
        has_inner: receivers made a call of the same instance inside of this turn.
        shown: the token of the context variable, after `show`; None before.
        waiters: futures of the turns that wait for this one.
    """

    # Class defaults instead of slots: each call makes a turn, and most attributes keep their default.
    before: "Turn | None" = None
    outer: "Turn | None" = None
    session: Any = None
    has_inner = False
    shown: Token["Turn | None"] | None = None
    waiters: tuple[asyncio.Future[None], ...] = ()

    instance: Any
    place: int
    loop: asyncio.AbstractEventLoop

    def show(self) -> None:
        """Make this turn the outer turn of the calls that receivers make from now on."""
        if self.shown is None:
            self.shown = _current.set(self)

    def hide(self) -> None:
        """Undo `show`."""
        if self.shown is not None:
            try:  # noqa: SIM105 - contextlib.suppress takes ten times as long
                _current.reset(self.shown)
            except ValueError:  # the garbage collector ends the coroutine of the call, in another context
                pass

    @property
    def ended(self) -> bool:
        """Whether the next turns may begin."""
        return self.instance is None

    def enter(self, outer: "Turn") -> int:
        """Set the outer turn of this turn; returns the place of this turn."""
        self.outer = next((turn for turn in outer.chain() if not turn.ended), None)  # a task may outlive its turn
        for turn in outer.chain():
            if turn.instance is self.instance:
                turn.has_inner = True
                return id(turn)
        return self.place

    def chain(self) -> "Iterator[Turn]":
        """This turn and its outer turns, from the inside to the outside."""
        turn: Turn | None = self
        while turn is not None:
            yield turn
            turn = turn.outer

    async def wait(self) -> None:
        """Wait for the earlier turns."""
        while (before := self._turn_to_await()) is not None:
            waiter = self.loop.create_future()
            before.waiters += (waiter,)
            _waiting.add(self)
            try:
                if not before.ended:  # it may have ended in another thread just now
                    timeout = None if before.loop is self.loop else _FOREIGN_LOOP_SECONDS
                    await asyncio.wait([waiter], timeout=timeout)
            finally:
                _waiting.discard(self)

    def _turn_to_await(self) -> "Turn | None":
        """The earlier turn to wait for; None if there is none, or if it can't end before this turn."""
        while self.before is not None and self.before.ended:
            self.before = self.before.before
        before = self.before
        if before is None or not before.loop.is_running() or before.loop in blocked_loops():
            return None
        if self.session is not None and before.session is not self.session:
            return None  # on the server, the command of that turn may wait for our transaction
        return None if self._is_awaited_by(before) else before

    def _is_awaited_by(self, other: "Turn") -> bool:
        """Whether another turn is one of our outer turns, or can end only after one of them."""
        outer_turns = set(self.outer.chain()) if self.outer is not None else set()
        seen: set[Turn] = set()
        pending = [other] if outer_turns else []
        while pending:
            turn = pending.pop()
            if turn in outer_turns:
                return True
            if turn in seen:
                continue
            seen.add(turn)
            if turn in _waiting and turn.before is not None:
                pending.append(turn.before)
            pending += [inner for inner in tuple(_waiting) if inner is not turn and turn in inner.chain()]
        return False

    def end(self) -> None:
        """End the turn, and wake the turns that wait for it."""
        # In the queue, this turn is replaced by an inner turn that has not ended. If there is none, it is
        # replaced by an earlier turn that has not ended.
        if self.has_inner and (inside := _last.pop(id(self), None)) is not None:
            inside.place, self.before = self.place, inside
        while self.before is not None and self.before.ended:
            self.before = self.before.before
        self.instance = None
        if _last.get(self.place) is self:
            if self.before is None:
                del _last[self.place]
            else:
                _last[self.place] = self.before
        for waiter in self.waiters:
            with suppress(RuntimeError):  # its loop is closed
                waiter.get_loop().call_soon_threadsafe(_wake, waiter)


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


_current: ContextVar[Turn | None] = ContextVar("mongoz_turn", default=None)

_last: Final[dict[int, Turn]] = {}
"""The latest turn of each queue, by the queue's id (`Turn.place`): the id of an instance or of an outer turn.

An id stays unique, since turns keep their instances alive.
"""

_waiting: Final[set[Turn]] = set()


async def run_in_turn(
    instance: Any, session: Any, call: Callable[..., Coroutine[Any, Any, T]], *arguments: Any
) -> T:
    """Await a call of an instance after the earlier calls of the same instance have ended.

    Args:
        instance: the instance.
        session: the session that the caller gave.
        call: the coroutine function that reads or writes the instance. It gets the turn, the instance, the session
            and the further arguments, and must call `Turn.show` before it runs receivers.
        *arguments: the further arguments.
    """
    # Optimized for an instance without other calls, which is nearly always the case.
    turn = Turn()
    turn.instance = instance
    turn.loop = get_running_loop()
    turn.place = place = id(instance)
    outer = _current.get()
    if outer is not None:
        turn.place = place = turn.enter(outer)
    if session is not None or is_in_transaction():
        turn.session = session_of_call(session)
    before = _last.get(place)
    if before is not None:
        turn.before = before
    _last[place] = turn
    try:
        if before is not None:
            await turn.wait()
        return await call(turn, instance, session, *arguments)
    finally:
        if turn.before is None and not (turn.has_inner or turn.waiters) and _last.get(place) is turn:
            del _last[place]
            turn.instance = None
        else:
            turn.end()
        if turn.shown is not None:  # this check saves a call
            turn.hide()


async def run_in_turns(instances: Collection[Any], session: Any, call: Coroutine[Any, Any, T]) -> T:
    """Await a call of several instances after the earlier calls of each instance have ended.

    The call has a single turn. When there is no earlier turn that it must wait for, it enters the queues of all
    instances in one step. So two calls never wait for each other.
    """
    turn, outer = Turn(), _current.get()
    turn.instance, turn.place, turn.loop = instances, id(turn), get_running_loop()
    turn.outer = None if outer is None else next((each for each in outer.chain() if not each.ended), None)
    if session is not None or is_in_transaction():
        turn.session = session_of_call(session)
    places = set(map(id, instances))
    passed: set[Turn | None] = {None}  # turns that have ended, or can't end before this one
    replaced: dict[int, Turn] = {}
    turn.show()
    try:
        while earlier := {_last.get(place) for place in _last.keys() & places} - passed:
            turn.before = before = earlier.pop()
            await turn.wait()
            passed.add(before)
        turn.before, replaced = None, {place: _last[place] for place in _last.keys() & places}
        _last.update(dict.fromkeys(places, turn))
        return await call
    except BaseException:
        call.close()  # perhaps it has not begun
        raise
    finally:
        for place in places:
            if _last.get(place) is turn:
                del _last[place]
                if place in replaced and not replaced[place].ended:
                    _last[place] = replaced[place]
        turn.end()
        turn.hide()
