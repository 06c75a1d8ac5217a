"""Output that can't be written is dropped and counted, and the count is written as soon as possible."""

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from dispatcher.core.output.writer import Writer, _Stream
from tests.support import eventually_sync


def named(count: int) -> str:
    return f"[{count} dropped]\n"


class Pipe:
    """A pipe, and the data that was read from it."""

    def __init__(self) -> None:
        self.theirs, self.ours = os.pipe()
        self.read = b""

    def fill(self) -> None:
        os.set_blocking(self.ours, False)
        with suppress(BlockingIOError):
            while True:
                os.write(self.ours, b"." * 4096)
        os.set_blocking(self.ours, True)

    def reads(self, enough: Callable[[bytes], object]) -> bytes:
        os.set_blocking(self.theirs, False)

        def look() -> object:
            with suppress(BlockingIOError):
                self.read += os.read(self.theirs, 1_000_000)
            return enough(self.read)

        eventually_sync(look, within=60)
        return self.read

    def close(self) -> None:
        for descriptor in (self.theirs, self.ours):
            with suppress(OSError):
                os.close(descriptor)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def test_lines_come_in_order(pipe):
    writer = Writer(pipe.ours, named)
    expected = b"".join(b"%d\n" % n for n in range(5_000))
    for n in range(5_000):
        writer.write(b"%d\n" % n)
    assert pipe.reads(lambda read: len(read) >= len(expected)) == expected
    assert writer.dropped == 0


def test_flushing_waits_for_the_last_line(tmp_path):
    with (tmp_path / "log").open("wb") as file:
        writer = Writer(file.fileno(), named)
        for n in range(1_000):
            writer.write(b"%d\n" % n)
        writer.flush()
        assert (tmp_path / "log").read_bytes().endswith(b"\n999\n")


def test_a_full_pipe_delays_no_caller_and_dropped_lines_are_counted(pipe):
    pipe.fill()
    writer = Writer(pipe.ours, named)
    spent = time.thread_time()
    for n in range(1_000):
        writer.write(b"early %d\n" % n)
    assert time.thread_time() - spent < 5
    eventually_sync(lambda: writer.dropped, within=60)
    writer.flush()  # the writer gives up
    dropped = writer.dropped
    pipe.reads(lambda read: b" dropped]\n" in read)
    writer.write(b"late\n")
    read = pipe.reads(lambda read: read.endswith(b"late\n"))
    assert f"[{dropped} dropped]\n".encode() in read
    assert read.count(b" dropped]") == 1
    assert read.count(b"early") + dropped == 1_000


@pytest.mark.parametrize("line", [b"x" * 99 + b"\n", b"y" * 999_999 + b"\n"])
def test_the_queue_of_lines_is_bounded(pipe, line):
    pipe.fill()
    writer = Writer(pipe.ours, named)
    count = 40_000_000 // len(line) // (1 if len(line) > 1_000 else 10)
    for _ in range(count):
        writer.write(line)
    assert sum(len(data) for _, data in writer._waiting) <= 8_000_000
    assert len(writer._waiting) <= 20_000
    assert writer.dropped > 0
    pipe.reads(lambda read: b" dropped]\n" in read)


def test_lines_are_kept_while_the_thread_can_not_run(pipe, monkeypatch):
    """A busy interpreter delays the thread although the pipe has room."""
    writer = Writer(pipe.ours, named)
    writer.write(b"one\n")
    pipe.reads(lambda read: read == b"one\n")
    writer._since = time.monotonic() - 60  # the write seems to have begun long ago
    writer._waiting.append((time.monotonic() - 50, b"two\n"))
    writer.write(b"three\n")
    assert pipe.reads(lambda read: read.endswith(b"three\n")) == b"one\ntwo\nthree\n"
    assert writer.dropped == 0


def test_a_full_disk_drops_lines_after_the_time_limit(tmp_path):
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
        writer = Writer(full.fileno(), named)
        writer.write(b"one\n")
        eventually_sync(lambda: writer.dropped == 1, within=60)
        writer.flush()
        with (tmp_path / "log").open("wb") as file:  # there is room again
            os.dup2(file.fileno(), writer._descriptor)
            eventually_sync(lambda: (tmp_path / "log").read_bytes() == b"[1 dropped]\n", within=60)
            writer.write(b"two\n")
            eventually_sync(lambda: (tmp_path / "log").read_bytes() == b"[1 dropped]\ntwo\n", within=60)


def test_a_closed_pipe_delays_no_caller(pipe):
    writer = Writer(pipe.ours, named)
    os.close(pipe.theirs)
    for n in range(10):
        writer.write(b"%d\n" % n)
    eventually_sync(lambda: writer.dropped == 10, within=60)
    writer.flush()


def test_the_writer_waits_for_a_non_blocking_descriptor(pipe):
    pipe.fill()
    flags = fcntl.fcntl(pipe.ours, fcntl.F_GETFL)
    fcntl.fcntl(pipe.ours, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    writer = Writer(pipe.ours, named)
    writer.write(b"x" * 300_000 + b"\n")
    assert pipe.reads(lambda read: read.endswith(b"x\n")).count(b"x") == 300_000
    writer.flush()
    assert writer.dropped == 0


def test_the_writer_survives_the_closing_of_the_original_descriptor(pipe):
    writer = Writer(pipe.ours, named)
    os.close(pipe.ours)
    writer.write(b"one\n")
    assert pipe.reads(lambda read: read == b"one\n")


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # about a fork while a thread runs
def test_a_child_process_writes_its_own_lines(pipe):
    writer = Writer(pipe.ours, named)
    writer.write(b"parent\n")
    writer.flush()
    if (child := os.fork()) == 0:
        writer.write(b"child\n")
        writer.flush()
        os._exit(0)
    os.waitpid(child, 0)
    assert pipe.reads(lambda read: b"child" in read) == b"parent\nchild\n"


def test_the_stream_takes_any_text_and_can_not_be_closed(pipe):
    stream = _Stream(Writer(pipe.ours, named), pipe.ours, "latin-1")
    print("a → \ud800 é", file=stream)
    stream.close()
    stream.buffer.write(b"bytes\n")
    print("still", end="", file=stream)
    stream.finish()
    assert pipe.reads(lambda read: b"still" in read) == b"a \\u2192 \\ud800 \xe9\nbytes\nstill"
    assert not stream.isatty()


def test_the_thread_waits_after_an_empty_text(pipe):
    """`print` with an empty `end` writes an empty text, too. The log is written like that."""
    writer = Writer(pipe.ours, named)
    print("line\n", end="", file=_Stream(writer, pipe.ours, "utf-8"), flush=True)
    assert pipe.reads(lambda read: read.endswith(b"\n")) == b"line\n"
    eventually_sync(lambda: writer._since is None, within=60)
    assert not writer._waiting


def test_many_threads_write_whole_lines(pipe):
    writer = Writer(pipe.ours, named)
    threads = [
        threading.Thread(target=lambda n=n: [writer.write(b"%d-%d\n" % (n, i)) for i in range(500)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    read = pipe.reads(lambda read: read.count(b"\n") == 2_000)
    for thread in threads:
        thread.join()
    assert sorted(read.split()) == sorted(b"%d-%d" % (n, i) for n in range(4) for i in range(500))
