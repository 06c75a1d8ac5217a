"""The thread that polls the consumer of a process."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic, sleep
from typing import TYPE_CHECKING, Final

from dispatcher.core.output.logs import log

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Message

# Maximum seconds of a wait of the thread: for `go_on`, and then for a message. So a command waits for twice this
# time at most.
_TICK: Final = 0.1

# Seconds without a poll after which all partitions are paused. There are two reasons. The client drops the records
# that it has fetched, and fetches them again later: so memory is free during a long pause. And the client reports
# errors only in polls: while all partitions are paused, the thread can poll without getting messages.
_LONG: Final = 5.0

# Seconds before the thread polls again after an error.
_AGAIN: Final = 1.0

# Number of messages that the thread takes at first, while their size is unknown.
_FEW: Final = 10


class Polling:
    """Polls a consumer in a thread. All commands to the consumer run in this thread, too.

    Args:
        distribute: gets the messages in the event loop. The thread polls again after `go_on`.

    Attributes:
        at_once: maximum number of messages that the thread takes in one poll, besides the first message.
        paused: the numbers of the partitions that commands have paused. Only the thread changes this set.
        is_suspended: whether all partitions are paused.
    """

    def __init__(
        self,
        consumer: "Consumer",
        loop: asyncio.AbstractEventLoop,
        distribute: "Callable[[Sequence[Message]], None]",
    ) -> None:
        self._thread = threading.Thread(target=self._serve, name="kafka-consumer", daemon=True)
        self._consumer = consumer
        self._loop = loop
        self._distribute = distribute
        self._commands: deque[Callable[[Consumer], None]] = deque()
        self._may_poll = threading.Event()
        self._stopping = False
        self.at_once = _FEW
        self.paused: set[int] = set()
        self.is_suspended = False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the end of the thread."""
        self._thread.join()

    def go_on(self) -> None:
        """Let the thread poll again."""
        self._may_poll.set()

    def stop(self) -> None:
        """Let the thread run the waiting commands, and end."""
        self._stopping = True
        self._may_poll.set()

    def order(self, command: "Callable[[Consumer], None]") -> None:
        """Let the thread run a command soon. Errors of the command are logged."""

        def run(consumer: "Consumer") -> None:
            try:
                command(consumer)
            except Exception as error:
                log.warning("a command of the consumer failed", action="kafka.command_failed", error=str(error))

        self._commands.append(run)

    async def run(self, command: "Callable[[Consumer], None]", then: Callable[[], None]) -> None:
        """Run a command, and wait for its end.

        Args:
            then: called in the event loop after the command has succeeded. At that time, `distribute` has got all
                messages from before the command, and no later ones.
        """
        done: asyncio.Future[None] = self._loop.create_future()

        def run(consumer: "Consumer") -> None:
            try:
                command(consumer)
            except Exception as error:
                self._loop.call_soon_threadsafe(_end, done, error)
            else:
                self._loop.call_soon_threadsafe(then)
                self._loop.call_soon_threadsafe(_end, done, None)

        self._commands.append(run)
        await done

    # -- in the thread -------------------------------------------------------------------------------------

    def _serve_callbacks(self) -> None:
        """Let the client report errors and figures. Paused partitions have no messages."""
        event = self._consumer.poll(0)
        if event is not None:
            self._loop.call_soon_threadsafe(self._distribute, [event])

    def _run_commands(self) -> None:
        while self._commands:
            self._commands.popleft()(self._consumer)

    def _poll(self) -> None:
        first = self._consumer.poll(_TICK)
        if first is not None:
            self._may_poll.clear()
            messages = [first]
            try:
                messages += self._consumer.consume(self.at_once, 0)
            finally:
                self._loop.call_soon_threadsafe(self._distribute, messages)

    def _suspend(self) -> None:
        self._consumer.pause(self._consumer.assignment())
        self.is_suspended = True

    def _resume(self) -> None:
        self._consumer.resume([one for one in self._consumer.assignment() if one.partition not in self.paused])
        self.is_suspended = False

    def _turn(self, polled: float) -> float:
        """Run the commands, and poll if `go_on` was called.

        Args:
            polled: the time of the last poll.

        Returns:
            The new time of the last poll; `polled` if this call did not poll.
        """
        self._run_commands()
        if self._may_poll.wait(_TICK):
            if self.is_suspended:
                self._resume()
            self._poll()
            return monotonic()
        if self.is_suspended:
            self._serve_callbacks()
        elif monotonic() - polled > _LONG:
            self._suspend()
        return polled

    def _turn_until_stopped(self) -> None:
        polled = monotonic()
        while not self._stopping:
            try:
                polled = self._turn(polled)
            except Exception as error:  # without this thread, all partitions would stand still
                if self._loop.is_closed():
                    return
                log.warning("the client can't read now, trying again", action="kafka.not_polled", error=str(error))
                sleep(_AGAIN)
        self._run_commands()

    def _serve(self) -> None:
        try:
            self._turn_until_stopped()
        finally:
            self._consumer.close()


def _end(future: "asyncio.Future[None]", error: Exception | None) -> None:
    if future.done():  # the caller was cancelled
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
