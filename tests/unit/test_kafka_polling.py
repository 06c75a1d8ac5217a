"""The thread that polls a consumer survives errors of the client, and loses no message."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from dispatcher.kafka import polling
from dispatcher.kafka.polling import Polling
from tests.support import eventually


class Refusal(Exception):
    """An error of the client."""


class Client:
    """A consumer that yields some messages, and raises some errors."""

    def __init__(self, polls: Iterator[Any], rests: Iterator[Any]) -> None:
        self._polls = polls
        self._rests = rests
        self.closed = False

    def poll(self, _timeout: float) -> Any:
        """The next message."""
        return self._next(self._polls, None)

    def consume(self, _most: int, _timeout: float) -> Any:
        """The messages after the polled one."""
        return self._next(self._rests, [])

    @staticmethod
    def _next(results: Iterator[Any], nothing: Any) -> Any:
        result = next(results, nothing)
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        """Notes the call."""
        self.closed = True


async def test_errors_of_the_client_end_no_thread_and_lose_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "_AGAIN", 0.01)
    got: list[str] = []
    client: Any = Client(
        iter(["a", Refusal("1"), "c", None, RuntimeError("3"), "d"]), iter([["b"], Refusal("2"), []])
    )

    def distribute(messages: Any) -> None:
        got.extend(messages)
        thread.go_on()

    thread = Polling(client, asyncio.get_running_loop(), distribute)
    thread.start()
    thread.go_on()
    await eventually(lambda: got == ["a", "b", "c", "d"])
    thread.stop()
    await asyncio.to_thread(thread.join)
    assert client.closed
