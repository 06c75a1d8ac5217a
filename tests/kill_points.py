"""A writing process whose children are killed, stopped or torn at each of their awaits, one child after another.

`python -m tests.kill_points URL DATABASE CALL FAULT LEDGER` forks one child for each await of a call of the ODM.
At this await the child has its fault:

    kill    SIGKILL
    stop    SIGSTOP. After a line on stdin all children get SIGCONT, and finish
    tear    the event loop ends, as at the end of `asyncio.run()`. The child writes again in a second loop, and
            lives on until a line on stdin

The last child finishes its call without a fault. When all children have had their faults, the process writes
`N children` to stdout. Each receiver in a child adds a line to the ledger when it begins and when it ends.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from types import coroutine
from typing import Any, Final, NamedTuple

from bson import ObjectId
from pymongo.errors import PyMongoError

import mongoz
from mongoz.core.signals import post_delete, post_save, post_update
from tests.support import ROOT

SECONDS: Final = 6.0
"""The timeout of the children."""

MOST: Final = 60
"""The maximum number of children. Each call has fewer awaits."""

CLAIMED: Final = ("first", "second")
"""The receivers that a child claims."""


class Ran(NamedTuple):
    """A receiver began or ended.

    Attributes:
        what: `"begin"` or `"end"`.
        receiver: its name.
        signal: the name of the signal.
        key: the number of the document.
        id: `delivery.id`.
        resumed: whether the process has had its fault already.
        origin: `delivery.origin`.
    """

    what: str
    receiver: str
    signal: str
    key: int
    id: str
    resumed: bool
    origin: str


Note = Callable[[str, Any, Any], None]


def make(registry: mongoz.Registry, database: str, note: Note, *, pause: bool = False) -> Any:
    """A document class with two receivers of each signal in the writing process, and one in dispatchers.

    Args:
        note: gets `"begin"` or `"end"`, the instance, and the delivery.
        pause: whether the receivers wait once between begin and end.
    """

    class Item(mongoz.Document):
        n: int = mongoz.Integer()

        Meta = type("Meta", (), {"registry": registry, "database": database, "collection": "items"})

    def connect(post: Any, name: str, delivery: str) -> None:
        async def receive(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
            note("begin", instance, delivery)
            if pause:
                await asyncio.sleep(0)
            note("end", instance, delivery)

        post(Item, name=name, delivery=delivery)(receive)

    for post in (post_save, post_update, post_delete):
        for name in CLAIMED:
            connect(post, name, "any")
        connect(post, "durable", "dispatcher")
    return Item


def ran(what: str, instance: Any, delivery: Any, *, resumed: bool = False) -> Ran:
    """The record of a receiver that began or ended."""
    return Ran(
        what,
        delivery.receiver,
        delivery.signal,
        number_of(instance.id),
        delivery.id,
        resumed,
        delivery.origin,
    )


def id_of(number: int) -> ObjectId:
    """The `_id` of a document."""
    return ObjectId(f"{number:024x}")


def number_of(id_: ObjectId) -> int:
    """Undo `id_of`."""
    return int(str(id_), 16)


# -- the calls


class Call(NamedTuple):
    """A call of the ODM.

    Attributes:
        run: makes the call. Gets the class and the number of the first document.
        signals: the signal of each document, in the order of the documents' numbers.
        is_first: whether the call is the first call of its process.
    """

    run: Callable[[Any, int], Awaitable[Any]]
    signals: tuple[str, ...]
    is_first: bool = False


async def create(Item: Any, first: int) -> None:
    await Item(id=id_of(first), n=2).create()


async def save(Item: Any, first: int) -> None:
    item = await Item.objects.get(id=id_of(first))
    item.n = 2
    await item.save()


async def update(Item: Any, first: int) -> None:
    await (await Item.objects.get(id=id_of(first))).update(n=2)


async def delete(Item: Any, first: int) -> None:
    await (await Item.objects.get(id=id_of(first))).delete()


async def create_many(Item: Any, first: int) -> None:
    await Item.objects.create_many([Item(id=id_of(first), n=2), Item(id=id_of(first + 1), n=2)])


async def update_many(Item: Any, first: int) -> None:
    await Item.objects.filter(id__in=[id_of(first), id_of(first + 1)]).update_many(n=2)


async def delete_many(Item: Any, first: int) -> None:
    await Item.objects.filter(id__in=[id_of(first), id_of(first + 1)]).delete()


async def transaction(Item: Any, first: int) -> None:
    async with Item.meta.registry.transaction():
        await create(Item, first)
        await update(Item, first + 1)
        await delete(Item, first + 2)


SAVE, UPDATE, DELETE = "post_save", "post_update", "post_delete"

CALLS: Final = {
    "first create": Call(create, (SAVE,), is_first=True),
    "create": Call(create, (SAVE,)),
    "save": Call(save, (SAVE,)),
    "update": Call(update, (UPDATE,)),
    "delete": Call(delete, (DELETE,)),
    "create_many": Call(create_many, (SAVE, SAVE)),
    "update_many": Call(update_many, (UPDATE, UPDATE)),
    "delete_many": Call(delete_many, (DELETE, DELETE)),
    "transaction": Call(transaction, (SAVE, UPDATE, DELETE)),
}

_APART: Final = 10  # each child has this many numbers


def existing(name: str) -> list[dict[str, Any]]:
    """The documents that must exist before a call."""
    call = CALLS[name]
    creates = call.run in (create, create_many)
    return [
        {"_id": id_of(child * _APART + place), "n": 1}
        for child in range(MOST)
        for place, _ in enumerate(call.signals)
        if not (creates or (call.run is transaction and place == 0))
    ]


def numbers(name: str, children: int) -> dict[int, str]:
    """The numbers of the documents of a call, each with its signal."""
    each = list(enumerate(CALLS[name].signals))
    return {child * _APART + place: signal for child in range(children) for place, signal in each}


def effects(name: str, children: int, rows: dict[int, int]) -> set[tuple[str, int]]:
    """Signal and number of each write that took effect.

    Args:
        name: the name of the call.
        children: the number of children.
        rows: the documents as they are now: number -> the value of `n`.
    """
    return {
        (signal_, number)
        for number, signal_ in numbers(name, children).items()
        if rows.get(number) == (None if signal_ == DELETE else 2)
    }


# -- the children


class Points:
    """Counts awaits, and causes the fault at one of them.

    Args:
        left: the number of the await with the fault, from 1.
        fault: causes the fault.
    """

    def __init__(self, left: int, fault: Callable[[], None]) -> None:
        self._left = left
        self._fault = fault

    @property
    def is_past(self) -> bool:
        """Whether the fault has happened."""
        return self._left <= 0

    def reach(self) -> None:
        """Count one await."""
        self._left -= 1
        if self._left == 0:
            self._fault()


_is_measured: ContextVar[bool] = ContextVar("is_measured", default=False)


def make_factory(points: Points) -> Callable[..., asyncio.Task[Any]]:
    """A task factory that counts the awaits of tasks with `_is_measured`."""

    @coroutine
    def steps(inner: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        value, error = None, None
        while True:
            try:
                waits_for = inner.send(value) if error is None else inner.throw(error)
            except StopIteration as stop:
                return stop.value
            points.reach()
            try:
                value, error = (yield waits_for), None
            except BaseException as raised:
                value, error = None, raised

    async def stepping(inner: Coroutine[Any, Any, Any]) -> Any:
        return await steps(inner)

    def factory(
        loop: asyncio.AbstractEventLoop, inner: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        return asyncio.Task(stepping(inner) if _is_measured.get() else inner, loop=loop, **options)

    return factory


def cancel_all() -> None:
    """Cancel all tasks, as the end of an event loop does."""
    for task in asyncio.all_tasks():
        task.cancel()


FAULTS: Final[dict[str, Callable[[], None]]] = {
    "kill": lambda: signal.raise_signal(signal.SIGKILL),
    "stop": lambda: signal.raise_signal(signal.SIGSTOP),
    "tear": cancel_all,
}


class Child:
    """One child.

    Args:
        number: the number of the child, from 0. The fault is at the await with this number.
    """

    def __init__(self, url: str, database: str, call: str, fault: str, ledger: Path, number: int) -> None:
        self.points = Points(number + 1, FAULTS[fault])
        self.first = number * _APART
        self._call = CALLS[call]
        self._ledger = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._registry = mongoz.Registry(url, dispatched=database, state=f"{database}_state", claims=SECONDS)
        self._item = make(self._registry, database, self._note, pause=True)

    def _note(self, what: str, instance: Any, delivery: Any) -> None:
        line = json.dumps(ran(what, instance, delivery, resumed=self.points.is_past))
        os.write(self._ledger, f"{line}\n".encode())

    def run(self) -> None:
        """Make the call in an event loop of its own."""
        with suppress(asyncio.CancelledError):
            asyncio.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        await self._registry.client.admin.command("ping")
        if not self._call.is_first:
            await self._registry.clock.compare(self._registry.client)
            assert self._registry.claims is not None
            await self._registry.claims.prepare()
            assert self._registry.claims.book.is_valid, self._registry.claims.refusal
        loop.set_task_factory(make_factory(self.points))
        _is_measured.set(True)
        with suppress(PyMongoError):  # for example a transaction that the server aborted meanwhile
            await loop.create_task(self._call.run(self._item, self.first))  # type: ignore[arg-type]

    def write_again(self) -> None:
        """Write in a second event loop."""
        asyncio.run(create(self._item, self.first + _APART - 1))

    def close(self) -> None:
        """Close the registry. The child must have claimed all its writes, even after it was stopped."""
        assert self._registry.claims is not None
        assert not self._registry.claims.unclaimed, self._registry.claims.unclaimed
        asyncio.run(self._registry.close())


def _run_child(child: Child, fault: str, answer: int) -> None:
    """Runs a child to its end. A torn child answers whether it had its fault."""
    child.run()
    if fault == "tear" and child.points.is_past:
        child.write_again()
        os.write(answer, b"past")
        signal.pause()
    child.close()
    if fault == "tear":
        os.write(answer, b"done")


def _fork(arguments: tuple[Any, ...], fault: str) -> tuple[int, bytes]:
    """Run a child until it has had its fault; returns its pid and its answer."""
    answer, answering = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _run_child(Child(*arguments), fault, answering)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    os.close(answering)
    if fault == "tear":
        told = os.read(answer, 4)
    else:
        _, status = os.waitpid(pid, os.WUNTRACED)
        told = b"done" if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0 else b"past"
        assert told == b"done" or os.WIFSTOPPED(status) or os.WIFSIGNALED(status), f"{pid}: {status}"
    os.close(answer)
    return pid, told


def main(url: str, database: str, call: str, fault: str, ledger: str) -> None:
    """Run the children."""
    pids = []
    for number in range(MOST):
        pid, told = _fork((url, database, call, fault, Path(ledger), number), fault)
        assert told in (b"past", b"done"), f"a child failed: {told!r}"
        if told == b"done":
            print(f"{number} children", flush=True)
            break
        pids.append(pid)
    sys.stdin.readline()
    if fault == "kill":
        return
    for pid in pids:
        os.kill(pid, signal.SIGKILL if fault == "tear" else signal.SIGCONT)
    failed = [pid for pid in pids if os.waitpid(pid, 0)[1] and fault == "stop"]
    assert not failed, f"children failed: {failed}"
    print("finished", flush=True)


# -- for tests


class Family:
    """The process with its children.

    Attributes:
        ledger: the lines of the receivers.
    """

    def __init__(self, url: str, database: str, call: str, fault: str, ledger: Path) -> None:
        arguments = [sys.executable, "-m", "tests.kill_points", url, database, call, fault, str(ledger)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._ledger = ledger
        self.process = subprocess.Popen(
            arguments,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def children(self) -> int:
        """Waits until all children have had their faults; returns their number."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.endswith("children\n"), line
        return int(line.split()[0])

    def go_on(self) -> None:
        """Lets the children go on, and waits for their end."""
        self.process.communicate("\n")
        assert self.process.returncode == 0

    @property
    def ledger(self) -> list[Ran]:
        """The lines of the receivers so far."""
        if not self._ledger.exists():
            return []
        return [Ran(*json.loads(line)) for line in self._ledger.read_text().splitlines()]


@contextmanager
def family(url: str, database: str, call: str, fault: str, ledger: Path) -> Iterator[Family]:
    """A process with its children, which end with the block."""
    running = Family(url, database, call, fault, ledger)
    try:
        yield running
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()
        for pipe in (running.process.stdin, running.process.stdout):
            if pipe is not None:
                pipe.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
