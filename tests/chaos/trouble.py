"""What goes wrong in receivers, if it is to: they raise, they hang, they take the process with them.

TROUBLE_DIRECTORY   holds what tells the process to die: whoever removes the file `RECEIVER-before` or
                    `RECEIVER-after` does so, before or after its effect. And a file with a letter per failure.
TROUBLE_SALT        makes one run's doomed writes others than another's
"""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from zlib import crc32

from mongoz.signals import Delivery, Retry

__all__ = ["CRASH", "RECEIVERS", "RETRY", "TIMEOUT", "doomed", "trouble", "troublesome"]

RECEIVERS = ("note", "book", "hold")
CRASH = 77
"""The exit code of a process that a receiver has ended."""
TIMEOUT = 4.0
"""Seconds that the daemon gives to a receiver, where it is to hang."""

troublesome = "TROUBLE_DIRECTORY" in os.environ
RETRY = Retry(attempts=7, base=0.05, cap=1.0) if troublesome else None

_RAISES = 0.04
_HANGS = 0.002
_DOOMED = 200  # one of so many

_directory = Path(os.environ.get("TROUBLE_DIRECTORY", "."))
_salt = os.environ.get("TROUBLE_SALT", "")


def doomed(receiver: str, name: str, n: int, salt: str = _salt) -> bool:
    """Whether a receiver never takes this write; the one that blocks takes none at its first attempts."""
    return crc32(f"{salt}:{receiver}:{name}:{n}".encode()) % _DOOMED == 0


class Mischief(Exception):
    """What receivers raise here."""


@asynccontextmanager
async def trouble(receiver: str, name: str, n: int, delivery: Delivery) -> AsyncIterator[None]:
    """Something may go wrong before the block, or after it."""
    if not troublesome or delivery.origin != "stream":
        yield
        return
    if doomed(receiver, name, n) and (receiver != "hold" or delivery.attempt < 4):
        raise Mischief(f"never {name} {n}")
    await _perhaps(receiver, "before")
    yield
    await _perhaps(receiver, "after")


async def _perhaps(receiver: str, when: str) -> None:
    try:
        (_directory / f"{receiver}-{when}").unlink()
    except FileNotFoundError:
        pass
    else:
        os._exit(CRASH)
    if random.random() < _RAISES / 2:
        _count("r")
        raise Mischief(when)
    if random.random() < _HANGS / 2:
        _count("h")
        await asyncio.sleep(3600)


def _count(what: str) -> None:
    with (_directory / "failures").open("a") as file:
        file.write(what)
