"""Counters, histograms and the lag. Updates take little time. Reads do not reset the values."""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple

BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of the buckets of durations, in seconds. A bucket includes its bound."""

SIZES: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0)
"""Upper bounds of the buckets of the sizes of batches."""

MOST_RECEIVERS: Final = 200
"""Maximum number of receivers with their own figures. All further receivers share one set of figures."""

# Seconds that count as recent, and seconds between two samples of the counters.
_RECENT: Final = 60.0
_STEP: Final = 5.0

# Seconds without an answer after which a stream counts as late: even an idle stream answers every second.
_QUIET: Final = 5.0

# The number of changes per second is averaged over this many seconds, by the cluster times of the batches.
_WINDOW: Final = 60

# The name of the shared figures of receivers beyond `MOST_RECEIVERS`.
_OTHERS: Final = ("(others)", "")

_EPOCH: Final = datetime(1970, 1, 1)


class Histogram:
    """Counts values by bucket: durations in seconds, or sizes."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = BOUNDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def as_dict(self) -> dict[str, Any]:
        """The number and sum of the durations, and upper bounds of their median and 99th percentile."""
        return {
            "count": sum(self.counts),
            "sum_seconds": round(self.sum, 6),
            "p50_seconds": self.quantile(0.5),
            "p99_seconds": self.quantile(0.99),
        }

    def quantile(self, share: float) -> float | None:
        """An upper bound of a percentile: this share of the values does not exceed the bound.

        None if there are no values, or if too many values are above the last bound.
        """
        wanted = sum(self.counts) * share
        if not wanted:
            return None
        reached = 0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            reached += count
            if reached >= wanted:
                return bound
        return None


@dataclass(slots=True, eq=False)
class ReceiverFigures:
    """Figures of one receiver and one signal, over all document classes that the receiver is connected to."""

    receiver: str
    signal: str
    delivered: int = 0
    """Successful deliveries: the receiver returned."""
    failed: int = 0
    """Deliveries that were given up after the last attempt."""
    retried: int = 0
    """Attempts after the first one of a delivery."""
    postponed: int = 0
    """Attempts that ended with `RetryAfter`. They are neither failures nor retries."""
    limited: int = 0
    """Deliveries that were parked because of the limits of the receiver."""
    conflicts: int = 0
    """Runs of its transactions that conflicted with other writes."""
    withheld: dict[str, int] = field(default_factory=lambda: {"ran": 0, "muted": 0})
    """Changes that the receiver did not get because of their stamps, by reason. `"ran"`: it ran in the writing
    process. `"muted"`: the write was muted."""
    refused: int = 0
    """Deliveries that were given up without an attempt: no instance can be made of the document, or the change
    has too many hops."""
    latency: Histogram = field(default_factory=Histogram)
    """Durations from the commit of a change to the first attempt."""
    duration: Histogram = field(default_factory=Histogram)
    """Durations of the attempts."""
    batches: Histogram = field(default_factory=partial(Histogram, SIZES))
    """Sizes of the batches of a batch receiver, one for each attempt. A batch counts for the signal of its first
    event."""
    due: float = 0.0
    """Attempts that begin before this time of the monotonic clock are not measured."""

    def counters(self) -> dict[str, Any]:
        """The counters of this moment. The difference of two results gives a rate."""
        return {
            "receiver": self.receiver,
            "signal": self.signal,
            "delivered": self.delivered,
            "failed": self.failed,
            "retried": self.retried,
            "duration_sum": self.duration.sum,
            "duration_count": sum(self.duration.counts),
        }

    def as_dict(self) -> dict[str, Any]:
        """The figures, for JSON."""
        return {
            "receiver": self.receiver,
            "signal": self.signal,
            "delivered": self.delivered,
            "failed": self.failed,
            "retried": self.retried,
            "postponed": self.postponed,
            "limited": self.limited,
            "conflicts": self.conflicts,
            "withheld": dict(self.withheld),
            "latency": self.latency.as_dict(),
            "duration": self.duration.as_dict(),
        }


@dataclass(slots=True)
class TopicFigures:
    """Counters of a process that reads from a topic."""

    records: int = 0
    """Records that were read."""
    dropped: dict[str, int] = field(default_factory=lambda: {"duplicate": 0, "stale": 0, "ahead": 0})
    """Records without an effect, by decision, see `kafka/acceptance.py`."""


@dataclass(slots=True)
class RelayFigures:
    """Counters of a relay, and its present term."""

    records: int = 0
    """Records that the brokers have acknowledged."""
    bytes: int = 0
    """Bytes of these records, before compression."""
    large_events: int = 0
    """Events that are in files of the state, because they do not fit into a record."""
    term: int = 0
    """The last term of this process; 0 before the first one."""
    terms: dict[str, int] = field(default_factory=lambda: {"lease": 0, "error": 0, "topic": 0, "replaced": 0})
    """Terms that began, by cause. `lease`: this process took over the lease, or renewed it late. `error`: a record
    was not acknowledged. `topic`: the topic was deleted. `replaced`: another process had begun a term."""

    def counters(self) -> dict[str, int]:
        """The counters, for the log."""
        return {"records": self.records, "bytes": self.bytes, "large_events": self.large_events}


@dataclass(slots=True)
class Stats:
    """Counters since the start of the process."""

    read: int = 0
    """Change events that arrived."""
    delivered: int = 0
    """Deliveries whose receiver returned."""
    retried: int = 0
    """Attempts after the first one of a delivery."""
    failed: int = 0
    """Deliveries that were given up after the last attempt."""
    dead_letters: int = 0
    """Dead letters written."""
    invalid: int = 0
    """Changes that no receiver got, because no instances could be made of their documents."""
    reconnects: int = 0
    """Reopenings of the change stream."""
    saves: int = 0
    """Saves of the position."""
    parked: int = 0
    """Deliveries that were parked."""
    lease_changes: int = 0
    """Partitions that were taken over, given up or lost."""
    late_stamps: int = 0
    """Writes that took effect too long after they were stamped. The dispatcher delivered them again to the
    receivers that had run in the writing process."""
    untouched: int = 0
    """Updates that changed only the origin stamp. No receiver gets them."""
    gaps: int = 0
    """Gaps that were recorded."""
    taken_over: int = 0
    """Claimed deliveries that were made here, because the writing process did not finish them."""
    orphaned: int = 0
    """Claimed deliveries that were parked, because the dispatcher's application does not have their receiver."""
    clock_offset: float = 0.0
    """Seconds by which the server's clock is ahead of this machine's clock; 0 if that is not known."""
    receivers: dict[tuple[str, str], ReceiverFigures] = field(default_factory=dict)
    """Figures by receiver and signal."""
    topic: TopicFigures | None = None
    """Figures of the topic that the process reads from; None with change streams."""
    relay: RelayFigures | None = None
    """Figures of a relay; None in a dispatcher."""

    def as_dict(self) -> dict[str, int]:
        """The counters of the process by name."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.type is int}

    def figures_of(self, receiver: str, signal: str) -> ReceiverFigures:
        """The figures of one receiver, which are created by the first call."""
        found = self.receivers.get((receiver, signal))
        if found is not None:
            return found
        key = (receiver, signal) if len(self.receivers) < MOST_RECEIVERS else _OTHERS
        return self.receivers.setdefault(key, ReceiverFigures(*key))


class Recent:
    """The recent growth of receivers' counters, and the times of their last results. No I/O."""

    def __init__(self) -> None:
        # This sample stands for the start, when all counters were zero. So everything that was counted before the
        # next sample is recent too.
        self._samples: deque[tuple[float, _Counters]] = deque([(float("-inf"), {})])
        # For each receiver, the times of two samples: the first one after its last success, and the first one
        # after its last failure.
        self._times: dict[tuple[str, str], tuple[float | None, float | None]] = {}

    def note(self, now: float, receivers: Iterable[ReceiverFigures]) -> None:
        """Sample the counters, at most once in `_STEP` seconds. Call this method often.

        Args:
            now: the time by the monotonic clock.
        """
        samples = self._samples
        if now - samples[-1][0] < _STEP:
            return
        counters = {(one.receiver, one.signal): _recent_counters(one) for one in receivers}
        for key, counted in counters.items():
            self._times[key] = self._times_of(key, counted, now)
        samples.append((now, counters))
        while len(samples) > 1 and samples[1][0] <= now - _RECENT:
            samples.popleft()

    def _times_of(
        self, key: tuple[str, str], counted: tuple[int, ...], now: float
    ) -> tuple[float | None, float | None]:
        """The times of the last success and of the last failure of a receiver."""
        before = self._samples[-1][1].get(key, _NOTHING)
        succeeded, failed = self._times.get(key, (None, None))
        delivered, given_up, refused, _ = (a > b for a, b in zip(counted, before, strict=True))
        return now if delivered else succeeded, now if given_up or refused else failed

    def of(self, figures: ReceiverFigures) -> dict[str, float | None]:
        """The growth of a receiver's counters in the last minute, and the age of its last results.

        `succeeded_seconds` is the time since a delivery last succeeded, and `failed_seconds` the time since a
        delivery was last given up. Both are as precise as the samples. None means that there was no such delivery.
        """
        key, counted = (figures.receiver, figures.signal), _recent_counters(figures)
        before = self._samples[0][1].get(key, _NOTHING)
        now = self._samples[-1][0]
        succeeded, failed = (_age(at, now) for at in self._times_of(key, counted, now))
        grown = (a - b for a, b in zip(counted, before, strict=True))
        ages = {"succeeded_seconds": succeeded, "failed_seconds": failed}
        return {**dict(zip(_COUNTED, grown, strict=True)), **ages}


_Counters = dict[tuple[str, str], tuple[int, ...]]

_COUNTED: Final = ("delivered", "failed", "refused", "retried")
_NOTHING: Final = (0, 0, 0, 0)


def _age(at: float | None, now: float) -> float | None:
    """The seconds from a sample to the last sample; None without a sample.

    Before the first call of `note`, both times are minus infinity. Their difference is not a number, so the
    result for equal times is 0 without a subtraction.
    """
    return None if at is None else 0.0 if at == now else round(now - at, 1)


def _recent_counters(figures: ReceiverFigures) -> tuple[int, ...]:
    return figures.delivered, figures.failed, figures.refused, figures.retried


class TopicGauges(NamedTuple):
    """A topic as the pipeline of one partition sees it at this moment.

    Attributes:
        trouble: the reason why the topic can't be used now; empty if it can be used.
        lag_records: the number of records that the reader has not read; None if it is unknown.
        retention_seconds: the time for which the topic keeps a record; None if it is unknown or unlimited.
        buffered_bytes: bytes of records that have arrived and are not read: in the queue, and in the client.
        is_paused: whether the queue is full, so that no further records are fetched.
    """

    trouble: str = ""
    lag_records: int | None = None
    retention_seconds: float | None = None
    buffered_bytes: int = 0
    is_paused: bool = False


class ClaimGauges(NamedTuple):
    """The deliveries of one pipeline that wait in memory for the processes that wrote.

    Attributes:
        waiting: the number of these deliveries: claimed ones, and later ones of the same documents to the same
            receivers.
        oldest_seconds: how long ago the oldest change of these deliveries was committed; 0 if there is none.
        processes: the number of waiting deliveries by book, for the books with the most waiting deliveries.
    """

    waiting: int = 0
    oldest_seconds: float = 0.0
    processes: Mapping[str, int] = {}


class Gauges(NamedTuple):
    """One pipeline at this moment.

    Attributes:
        queued: changes that were read and are not finished; in a relay, records that are not acknowledged.
        lag_seconds: the age of the oldest change that is not delivered; 0 if there is none. A change that waits
            only for the process that wrote it does not count as undelivered.
        lag_changes: the number of undelivered changes. The number of unread ones is estimated.
        position_seconds: cluster time of the position, in seconds since 1970.
        saved_seconds: when the position was last saved, by the monotonic clock.
        silent_seconds: seconds since the request that the server has not answered yet; 0 if there is none.
        waiting_seconds: the age of the oldest change that was read and is not delivered; 0 if there is none.
        topic: the topic that is read, or published to; None if there is none.
        claims: the deliveries that wait for writing processes; None in a relay.
    """

    connected: bool
    in_flight: int
    queued: int
    queued_bytes: int
    lag_seconds: float
    lag_changes: float
    position_seconds: float
    saved_seconds: float
    silent_seconds: float = 0.0
    waiting_seconds: float = 0.0
    topic: TopicGauges | None = None
    claims: ClaimGauges | None = None


def topic_headroom(retention: float | None, age: float, *, all_read: bool) -> float | None:
    """The seconds until a topic may delete the record after a position; None if `retention` is None.

    Args:
        retention: the time in seconds for which the topic keeps a record; None if it is unknown or unlimited.
        age: the age of the position in seconds.
        all_read: whether the topic has no record after the position.
    """
    if retention is None:
        return None
    return retention if all_read else retention - age


class Lag:
    """Computes how far a reader is behind its stream. No I/O."""

    def __init__(self) -> None:
        self._answered_at = 0.0
        self._asked_at: float | None = None
        self._read_up_to = 0.0
        self._more = False
        self._recent: deque[tuple[float, int]] = deque()
        self._sum = 0

    def note_request(self, now: float) -> None:
        """Record that the server was asked for the next batch."""
        self._asked_at = now

    def silent(self, now: float) -> float:
        """Seconds since the request that the server has not answered yet; 0 if there is none."""
        return 0.0 if self._asked_at is None else now - self._asked_at

    def note_batch(self, now: float, up_to: float, changes: int, *, more: bool) -> None:
        """Record a batch.

        Args:
            now: the time by the monotonic clock.
            up_to: cluster time of the end of the batch, in seconds since 1970.
            more: whether the next batch was probably available already.
        """
        self._answered_at = now
        self._asked_at = None
        self._read_up_to = up_to
        self._more = more
        if self._recent and self._recent[-1][0] == up_to:
            self._recent[-1] = (up_to, self._recent[-1][1] + changes)
        else:
            self._recent.append((up_to, changes))
        self._sum += changes
        while self._recent[0][0] < up_to - _WINDOW:
            self._sum -= self._recent.popleft()[1]

    def unread(self, now: float, server_now: float) -> float:
        """Seconds of the stream that are not read; 0 if it was read to its end just now."""
        if not self._answered_at:
            return 0.0
        quiet = now - self._answered_at
        if self._more:
            return max(0.0, server_now - self._read_up_to)
        return quiet if quiet > _QUIET else 0.0

    def seconds(self, now: float, server_now: float, oldest: float | None) -> float:
        """The age of the oldest change that is not delivered.

        Args:
            now: the time by the monotonic clock.
            server_now: the time by the server's clock, in seconds since 1970.
            oldest: cluster time of the oldest change that was read and is not finished.
        """
        waiting = 0.0 if oldest is None else server_now - oldest
        return max(waiting, self.unread(now, server_now))

    def changes(self, now: float, server_now: float, unfinished: int) -> float:
        """The number of undelivered changes: the read ones, and an estimate of the unread ones.

        The estimate assumes that the stream continues at the rate of the last minute that was read.
        """
        seconds = self.unread(now, server_now)
        if not seconds or not self._recent:
            return float(unfinished)
        span = self._recent[-1][0] - self._recent[0][0] + 1.0  # times are whole seconds
        return unfinished + round(seconds * self._sum / span)


def in_utc(moment: Any) -> datetime | None:
    """Convert a date from the driver, in naive UTC, to an aware one; None if the value is not a date."""
    return moment.replace(tzinfo=UTC) if isinstance(moment, datetime) else None


def seconds_of(wall_time: Any) -> float | None:
    """Convert a date, aware or in naive UTC, to seconds since 1970; None if the value is not a date."""
    try:
        if wall_time.tzinfo is None:
            return float((wall_time - _EPOCH).total_seconds())
        return float(wall_time.timestamp())
    except (AttributeError, TypeError):
        return None


def duration(seconds: float) -> str:
    """Seconds for people, in two units at most, such as "3 h 20 min" or "31 d"."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s".replace(".0 s", " s")
    rest = round(seconds)
    parts: list[tuple[int, str]] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count or parts:
            parts.append((count, unit))
    first, *others = parts
    if first[1] == "d" and first[0] >= 10:
        return f"{first[0]} d"
    return " ".join(f"{count} {unit}" for count, unit in (first, *others[:1]) if count)
