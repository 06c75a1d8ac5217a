"""All known kinds of invalid documents and hostile receivers.

DOCUMENTS    name of a kind -> a function that makes a document of this kind, with a new `_id`
BEHAVIOURS   name of a kind -> the behaviour of the receiver for a document of this kind
"""

import asyncio
import contextlib
import random
import sys
import threading
import time
import uuid
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import Any

import bson
from bson import Binary, Code, DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument

from mongoz.stamps import FIELD

__all__ = ["BEHAVIOURS", "CODEC_OPTIONS", "DOCUMENTS", "FAILING", "LASTING", "digest_of"]

Row = dict[str, Any]

CODEC_OPTIONS: CodecOptions[Row] = CodecOptions(
    uuid_representation=bson.binary.UuidRepresentation.STANDARD,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)


def digest_of(id_: Any) -> str:
    """A name for an `_id` of any type."""
    return blake2b(bson.encode({"": id_}, codec_options=CODEC_OPTIONS), digest_size=8).hexdigest()


# -- documents ---------------------------------------------------------------------------------------


def _with_id(**fields: Any) -> Callable[[random.Random], Row]:
    return lambda chance: {"_id": _object_id(chance), "name": "fine", **fields}


def _object_id(chance: random.Random) -> ObjectId:
    return ObjectId(chance.randbytes(12))


def _deep(levels: int) -> Row:
    document: Row = {}
    for _ in range(levels):
        document = {"d": document}
    return document


def _bad_text(chance: random.Random) -> Row:
    raw = bson.encode({"text": "AAAA"}).replace(b"AAAA", b"\xff\xfe\xff\xfe")
    return {"_id": _object_id(chance), "name": "fine", "data": RawBSONDocument(raw)}


def _stamped(chance: random.Random) -> Row:
    """A document with a forged stamp."""
    forged = (1, "text", {"t": 1}, [b"x"], None, b"", chance.randbytes(40), Binary(chance.randbytes(60), 128))
    return {"_id": _object_id(chance), "name": "fine", FIELD: chance.choice(forged)}


def _odd_id(chance: random.Random) -> Row:
    number = chance.getrandbits(40)
    odd = (
        {"tenant": uuid.UUID(int=number), "k": 1},
        {"a": {"b": [1, {"c": number}]}},
        uuid.UUID(int=number),
        f"text {number}",
        f"{number} " * 2_000,
        number,
        number + 0.5,
        Decimal128(str(number)),
        Binary(number.to_bytes(8, "big")),
        Binary(number.to_bytes(8, "big"), 5),
        DatetimeMS(number),
        DatetimeMS(2**55 + number),
        Timestamp(number % 2**31, 1),
        Code(f"f{number}"),
    )
    return {"_id": chance.choice(odd), "name": "fine"}


DOCUMENTS: dict[str, Callable[[random.Random], Row]] = {
    "wrong type": _with_id(n="not a number"),
    "null for a number": _with_id(n=None),
    "missing field": lambda chance: {"_id": _object_id(chance)},
    "only an _id": lambda chance: {"_id": chance.getrandbits(48)},
    "too long": _with_id(name="x" * 1_000),
    "100 levels deep": lambda chance: {"_id": _object_id(chance), "name": "fine", "data": _deep(98)},
    "invalid UTF-8": _bad_text,
    "a date in the year 1,000,000": _with_id(data={"when": DatetimeMS(2**55)}),
    "a forged stamp": _stamped,
    "an odd _id": _odd_id,
    "7 MB": lambda chance: {"_id": _object_id(chance), "name": "fine", "data": chance.randbytes(7_000_000)},
    "15 MB": lambda chance: {"_id": _object_id(chance), "name": "fine", "data": chance.randbytes(15_000_000)},
    "10,000 fields": lambda chance: {
        "_id": _object_id(chance),
        "name": "fine",
        **{f"f{n}": n for n in range(10_000)},
    },
    "100,000 items": _with_id(data=list(range(100_000))),
    "rare types": _with_id(
        data=[MinKey(), MaxKey(), Code("x"), DBRef("a", 1), Timestamp(1, 1), Regex("("), Int64(2**62), None]
    ),
    "odd names": _with_id(**{"": 1, "a.b": 2, "$set": 3, "model_dump": 4, "__class__": 5, "meta": 6, "id": 7}),
    "numbers at the limits": _with_id(
        n=Int64(2**63 - 1), data=[float("nan"), float("inf"), -0.0, Int64(-(2**63))]
    ),
}


# -- receivers ---------------------------------------------------------------------------------------


class _Unprintable(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __str__


class _Untruthful(Exception):
    def __bool__(self) -> bool:
        raise ValueError

    def __eq__(self, other: object) -> bool:
        raise ValueError

    __hash__ = None  # type: ignore[assignment]


def _raises(make: Callable[[], BaseException]) -> Callable[..., Awaitable[None]]:
    async def behave(**_: Any) -> None:
        raise make()

    return behave


async def _circular(**_: Any) -> None:
    error, other = ValueError("a"), ValueError("b")
    error.__cause__, other.__cause__ = other, error
    raise error


async def _recurse(**keywords: Any) -> None:
    await _recurse(**keywords)


async def _cancel_itself(**_: Any) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def _cancel_itself_later(**_: Any) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def _hang(**_: Any) -> None:
    await asyncio.sleep(3600)


async def _hang_on(**_: Any) -> None:
    for _attempt in range(2):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
    await asyncio.sleep(3600)


async def _block(**_: Any) -> None:
    time.sleep(0.5)


async def _spoil(instance: Any, delivery: Any, **keywords: Any) -> None:
    instance.__dict__.clear()
    for value in keywords.values():
        with contextlib.suppress(Exception):
            value.clear()
    with contextlib.suppress(Exception):
        delivery.__dict__.clear()


async def _leave_tasks(**_: Any) -> None:
    async def fail() -> None:
        await asyncio.sleep(0.01)
        raise ValueError("nobody waits for me")

    for _each in range(10):
        _left.add(asyncio.create_task(fail()))


_left: set[Any] = set()


async def _leave_threads(**_: Any) -> None:
    def fail() -> None:
        raise ValueError("nobody waits for me")

    for _each in range(5):
        threading.Thread(target=fail, daemon=True).start()


async def _leave_a_generator(**_: Any) -> None:
    async def numbers() -> Any:
        try:
            yield 1
        finally:
            raise ValueError("nobody waits for me")

    async for _number in numbers():
        return


async def _hoard(**_: Any) -> None:
    hoard = bytearray(30_000_000)
    await asyncio.sleep(0)
    hoard.clear()


async def _chase(instance: Any, **_: Any) -> None:
    """Writes to the delivered document. The write triggers the receiver again."""
    await instance.update(n=instance.n + 1)


async def _shout(**_: Any) -> None:
    sys.stderr.write("{" + "x" * 1_000_000 + "\n")


BEHAVIOURS: dict[str, Callable[..., Awaitable[None]]] = {
    "raises SystemExit": _raises(SystemExit),
    "raises KeyboardInterrupt": _raises(KeyboardInterrupt),
    "raises GeneratorExit": _raises(GeneratorExit),
    "raises CancelledError": _raises(asyncio.CancelledError),
    "raises StopIteration": _raises(StopIteration),
    "raises StopAsyncIteration": _raises(StopAsyncIteration),
    "raises MemoryError": _raises(MemoryError),
    "raises TimeoutError": _raises(TimeoutError),
    "raises what can't be printed": _raises(_Unprintable),
    "raises what can't be compared": _raises(_Untruthful),
    "raises 10 MB": _raises(lambda: ValueError("x" * 10_000_000)),
    "raises lone surrogates": _raises(lambda: ValueError("\ud800")),
    "raises groups": _raises(lambda: BaseExceptionGroup("all", [SystemExit(), ValueError()])),
    "raises an error that is its own cause": _circular,
    "recurses without end": _recurse,
    "cancels itself": _cancel_itself,
    "hangs": _hang,
    "hangs on when cancelled": _hang_on,
    "cancels itself, and returns": _cancel_itself_later,
    "blocks the event loop": _block,
    "spoils what it is given": _spoil,
    "leaves tasks that fail": _leave_tasks,
    "leaves threads that fail": _leave_threads,
    "leaves a generator": _leave_a_generator,
    "takes 30 MB": _hoard,
    "writes 1 MB to stderr": _shout,
    "chases its own tail": _chase,
}

FAILING = frozenset(list(BEHAVIOURS)[: list(BEHAVIOURS).index("cancels itself, and returns")])
"""Behaviours that never succeed."""

LASTING = frozenset({"chases its own tail"})
"""Behaviours that cause more changes."""
