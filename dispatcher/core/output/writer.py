"""Writes output in a thread, so that no other code waits. Lines that can't be written are dropped and counted.

The log must not stop the process when a disk is full, or when the reader of a pipe is gone or does not read. Only
the thread waits, in a blocking write. Lines that it can't write within a second are dropped, and so are the oldest
lines when too many wait. The number of dropped lines is written when the thread can write again.
"""

import atexit
import io
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic, sleep
from typing import Any, Final, Literal

# Seconds after which an unwritten line is dropped.
_PATIENCE: Final = 1.0

# Maximum seconds for which the end of the process waits for unwritten lines.
_LONGEST_END: Final = 5.0

# Seconds between two attempts if a write fails immediately.
_PAUSE: Final = 0.1

# Maximum number of waiting lines, and of their bytes.
_MOST_LINES: Final = 20_000
_MOST_BYTES: Final = 8_000_000

# A write that has this number of bytes gets no further lines.
_BATCH: Final = 65_536


class Writer:
    """Writes to a file descriptor. It never raises, and only `flush` waits.

    It has a copy of the descriptor, which no other code can close.

    Args:
        name_dropped: makes the line that reports the number of dropped lines.
    """

    def __init__(self, descriptor: int, name_dropped: Callable[[int], str]) -> None:
        self._descriptor = os.dup(descriptor)
        self._name_dropped = name_dropped
        self._dropped = 0
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset)  # the parent writes the waiting lines

    def _reset(self) -> None:
        # Re-entrant: while a line is added, the garbage collector may run code that logs.
        self._changed = threading.Condition(threading.RLock())
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._unnamed = 0
        self._rest = b""  # the rest of a line that was written in part
        self._since: float | None = None  # when the present write last made progress; None without a write
        self._fails = False
        self._thread: threading.Thread | None = None

    @property
    def dropped(self) -> int:
        """The number of dropped lines."""
        with self._changed:
            self._drop()
            return self._dropped

    def write(self, data: bytes) -> None:
        """Add bytes that the thread writes soon."""
        if not data:  # `print(end="")` writes an empty text, and the thread could never write that
            return
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="dispatcher-log", daemon=True)
                self._thread.start()
            self._waiting.append((monotonic(), data))
            self._bytes += len(data)
            self._drop()
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until everything is written or nothing can be written, but at most five seconds."""
        end = monotonic() + _LONGEST_END
        with self._changed:
            while self._waiting or self._since is not None:
                if self._is_stuck() or monotonic() > end:
                    return
                self._changed.wait(_PAUSE)

    def _drop(self) -> None:
        while self._waiting and (len(self._waiting) > _MOST_LINES or self._bytes > _MOST_BYTES):
            self._drop_one()
        if self._waiting and self._is_stuck():
            too_old = monotonic() - _PATIENCE
            while self._waiting and self._waiting[0][0] < too_old:
                self._drop_one()

    def _drop_one(self) -> None:
        _, data = self._waiting.popleft()
        self._bytes -= len(data)
        self._dropped += 1
        self._unnamed += 1

    def _is_stuck(self) -> bool:
        """Returns whether writes fail or block for too long. A thread that is only slow does not count."""
        if self._since is None or monotonic() - self._since < _PATIENCE:
            return False
        return self._fails or not _can_take(self._descriptor)

    # -- the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._unnamed and not self._rest:
                    self._since = None
                    self._changed.notify_all()
                    self._changed.wait()
                self._since = self._since or monotonic()
                self._drop()
            if not _can_take(self._descriptor, _PAUSE):
                continue
            with self._changed:
                lines, named = self._take(), self._unnamed
            notice = self._name_dropped(named).encode() if named else b""
            written = self._write_some(b"".join((self._rest, notice, *(data for _, data in lines))))
            with self._changed:
                self._settle(lines, named, notice, written)

    def _take(self) -> list[tuple[float, bytes]]:
        lines: list[tuple[float, bytes]] = []
        size = 0
        while self._waiting and size < _BATCH:
            lines.append(self._waiting.popleft())
            size += len(lines[-1][1])
        self._bytes -= size
        return lines

    def _write_some(self, data: bytes) -> int:
        """Write once, and return the number of written bytes. If nothing can be written, pause and return 0."""
        try:
            written = os.write(self._descriptor, data)
        except BlockingIOError:  # another process made the descriptor non-blocking
            self._fails = False
            _can_take(self._descriptor, _PAUSE)
            return 0
        except OSError:
            self._fails = True
            sleep(_PAUSE)
            return 0
        self._fails = False
        return written

    def _settle(self, lines: list[tuple[float, bytes]], named: int, notice: bytes, written: int) -> None:
        """Queue unwritten lines again, and keep the rest of a line that was written in part."""
        if written:
            self._since = monotonic()
        left = written - len(self._rest)
        self._rest = self._rest[written:]
        if named and left > 0:
            self._unnamed -= named
            self._rest = notice[left:]
            left -= len(notice)
        while lines and left > 0:
            _, data = lines.pop(0)
            self._rest = data[left:]
            left -= len(data)
        self._waiting.extendleft(reversed(lines))
        self._bytes += sum(len(data) for _, data in lines)
        self._drop()
        self._changed.notify_all()


def _can_take(descriptor: int, within: float = 0.0) -> bool:
    """Returns whether a descriptor accepts bytes within some seconds."""
    asked = select.poll()
    asked.register(descriptor, select.POLLOUT)
    return bool(asked.poll(within * 1_000))


class _Bytes(io.RawIOBase):
    """The binary layer of a replaced stream. It gives all bytes to the writer."""

    def __init__(self, writer: Writer, descriptor: int) -> None:
        self._writer = writer
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        taken = bytes(data)
        self._writer.write(taken)
        return len(taken)

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)


class _Stream(io.TextIOWrapper):
    """Replaces `sys.stderr` or `sys.stdout`: a write to it never waits. It can't be closed."""

    def __init__(self, writer: Writer, descriptor: int, encoding: str) -> None:
        bytes_ = _Bytes(writer, descriptor)
        super().__init__(bytes_, encoding, "backslashreplace", newline="\n", line_buffering=True)  # type: ignore[arg-type]
        self.writer = writer
        atexit.register(self.finish)

    def finish(self) -> None:
        """Wait as `Writer.flush` does."""
        self.flush()
        self.writer.flush()

    def close(self) -> None:
        """Flush the stream, and leave it open."""
        self.flush()


# The replaced streams of this process.
_streams: list[_Stream] = []


def replace_stream(name: Literal["stdout", "stderr"], name_dropped: Callable[[int], str]) -> None:
    """Replace stdout or stderr by a stream that never waits, unless other code has replaced it before."""
    stream = getattr(sys, name)
    if stream is not None and stream is getattr(sys, f"__{name}__"):
        descriptor = stream.fileno()
        _streams.append(_Stream(Writer(descriptor, name_dropped), descriptor, stream.encoding))
        setattr(sys, name, _streams[-1])


def dropped_lines() -> int:
    """The number of lines that could not be written."""
    return sum(stream.writer.dropped for stream in _streams)


def finish() -> None:
    """Wait as `Writer.flush` does, for each replaced stream. Call this function before `os._exit`."""
    for stream in (*_streams, sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.finish() if isinstance(stream, _Stream) else stream.flush()


def write_at_once(text: bytes) -> None:
    """Write to stderr from a signal handler, unless the write would block."""
    with suppress(OSError):
        if _can_take(2):
            os.write(2, text)
