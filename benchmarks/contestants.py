"""The processes of a measurement: the daemon, the bare loop and the writer; and their reports."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

from benchmarks.workloads.environment import Assignment
from benchmarks.workloads.shape import Shape
from dispatcher.embedded.processes import Child, Line

__all__ = [
    "BenchmarkFailed",
    "Contestant",
    "bare_loop",
    "bare_relay",
    "busy_daemon",
    "claiming_writer",
    "daemon",
    "relay",
    "writer",
]

_PATIENCE_SECONDS = 60.0


class BenchmarkFailed(Exception):
    """A measurement failed."""


class Contestant:
    """A process that writes lines of JSON, and is ended at the end of the block.

    Args:
        name: the name of the process, for messages.
        command: arguments for our Python interpreter.
        assignment: the measurement.
        is_ready: returns whether a line means that the process watches its stream.
        shape: the shape of the busy application; None for other applications.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        assignment: Assignment,
        is_ready: Callable[[dict[str, Any]], bool] = lambda _: False,
        shape: Shape | None = None,
    ) -> None:
        self.name = name
        self._lines: SimpleQueue[Line] = SimpleQueue()
        self._heard: list[str] = []
        self._is_ready = is_ready
        environment = assignment.environment | (shape.environment if shape is not None else {})
        self._child = Child(name, [sys.executable, *command], env=environment, into=self._lines)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.stop()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._child.process.pid

    def wait_ready(self) -> None:
        """Wait until the process watches its stream."""
        self._wait_for(self._is_ready)

    def measured(self, patience: float = _PATIENCE_SECONDS) -> dict[str, Any]:
        """Wait for the result of the process, for at most this number of seconds, and return the result."""
        return dict(self._wait_for(lambda said: "measured" in said, patience)["measured"])

    def news(self) -> list[dict[str, Any]]:
        """The lines that were not read yet.

        Raises:
            BenchmarkFailed: the process has ended.
        """
        said: list[dict[str, Any]] = []
        while True:
            try:
                line = self._lines.get_nowait()
            except Empty:
                return said
            if line.text is None:
                raise self._failed("ended before it was done")
            said.append(self._parsed(line.text))

    def end(self) -> list[dict[str, Any]]:
        """End the process with SIGTERM. Returns the lines that were not read yet."""
        code = self._child.stop()
        said = []
        while (line := self._lines.get(timeout=_PATIENCE_SECONDS)).text is not None:
            said.append(self._parsed(line.text))
        if code:
            raise self._failed(f"ended with exit code {code}")
        return said

    def kill(self) -> None:
        """End the process immediately: SIGKILL follows SIGTERM without a wait."""
        self._child.stop(grace=0.0)

    def _wait_for(
        self, wanted: Callable[[dict[str, Any]], bool], patience: float = _PATIENCE_SECONDS
    ) -> dict[str, Any]:
        deadline = time.monotonic() + patience
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                raise self._failed(f"wrote nothing for {patience:g} s") from None
            if line.text is None:
                raise self._failed("ended before it was done")
            said = self._parsed(line.text)
            if wanted(said):
                return said

    def _parsed(self, text: str) -> dict[str, Any]:
        self._heard.append(text)
        try:
            said = json.loads(text)
        except ValueError:  # a traceback
            return {}
        return said if isinstance(said, dict) else {}

    def _failed(self, what: str) -> BenchmarkFailed:
        words = "\n".join(f"  {line[:500]}" for line in self._heard[-30:])
        return BenchmarkFailed(f"The {self.name} {what}. Its last lines:\n{words or '  (none)'}")


def daemon(
    assignment: Assignment,
    state_database: str,
    *,
    flags: Sequence[str] = (),
    app: str = "benchmarks.workloads.app",
) -> Contestant:
    """The dispatcher as an operator starts it, without flags that affect its speed.

    Args:
        flags: further flags.
        app: the module of the application.
    """
    command = ["-m", "dispatcher", "run", f"{app}:registry", "--log-format", "json"]
    return Contestant(
        "dispatcher",
        [*command, "--state-database", state_database, *flags],
        assignment,
        is_ready=lambda said: said.get("action") == "dispatcher.started",
    )


def busy_daemon(
    assignment: Assignment, state_database: str, shape: Shape, *, flags: Sequence[str] = ()
) -> Contestant:
    """The dispatcher of an application of a given shape."""
    command = ["-m", "dispatcher", "run", "benchmarks.workloads.busy:registry", "--log-format", "json"]
    return Contestant(
        "dispatcher",
        [*command, "--state-database", state_database, *flags],
        assignment,
        is_ready=lambda said: said.get("action") == "dispatcher.started",
        shape=shape,
    )


def relay(assignment: Assignment, state_database: str, *flags: str, app: str) -> Contestant:
    """A relay of an application of `benchmarks.workloads`."""
    command = ["-m", "dispatcher", "relay", f"benchmarks.workloads.{app}:registry", "--log-format", "json"]
    return Contestant(
        "relay",
        [*command, "--state-database", state_database, *flags],
        assignment,
        is_ready=lambda said: said.get("action") == "relay.term",
    )


def bare_relay(assignment: Assignment, brokers: str, topic: str) -> Contestant:
    """The loop that publishes the events of PyMongo's change stream."""
    command = ["-m", "benchmarks.workloads.bare_relay", brokers, topic]
    return Contestant("bare relay", command, assignment, is_ready=lambda said: "ready" in said)


def bare_loop(assignment: Assignment, token: str | None = None) -> Contestant:
    """The loop over PyMongo's change stream; it starts after `token`, or now."""
    command = ["-m", "benchmarks.workloads.bare", *([token] if token else [])]
    return Contestant("bare loop", command, assignment, is_ready=lambda said: "ready" in said)


def writer(assignment: Assignment, *, rate: float, seed: int) -> Contestant:
    """A client that writes single documents."""
    return Contestant("writer", ["-m", "benchmarks.workloads.writer", str(rate), str(seed)], assignment)


def claiming_writer(assignment: Assignment, *, rate: float | None, claims: bool) -> Contestant:
    """A process of the application that claims its writes.

    Args:
        rate: writes per second; None writes as fast as possible.
    """
    pace = "fast" if rate is None else str(rate)
    command = ["-m", "benchmarks.workloads.claiming", pace, "claimed" if claims else "unclaimed"]
    return Contestant("writer", command, assignment)
