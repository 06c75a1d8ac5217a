"""The metrics for Prometheus, computed for each scrape.

METRICS has all names and their meanings. Tests compare it with the documentation, the Grafana dashboard and the
alert rules.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any, Final, Literal, NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from dispatcher.core.stats import (
    MOST_RECEIVERS,
    ClaimGauges,
    Gauges,
    Histogram,
    ReceiverFigures,
    RelayFigures,
    Stats,
    TopicFigures,
    TopicGauges,
    topic_headroom,
)
from dispatcher.operate.status_model import WORDS, GroupStatus

PREFIX: Final = "mongoz_dispatcher_"

_RECEIVER: Final = ("receiver", "signal")

Kind = Literal["counter", "gauge", "histogram"]


class Described(NamedTuple):
    """One metric.

    Attributes:
        name: the name without the prefix and, for a counter, without `_total`.
        help: its meaning, with the unit.
        of: computes its value: a number, a number for each combination of labels, or None if it is unknown.
        labels: its labels besides `group`, which all metrics have.
    """

    name: str
    help: str
    of: "Callable[[Snapshot], float | Iterable[tuple[tuple[str, ...], Any]] | None]"
    kind: Kind = "gauge"
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """The exposed name."""
        return f"{PREFIX}{self.name}{'_total' if self.kind == 'counter' else ''}"


class Snapshot(NamedTuple):
    """A process and its group at one moment.

    Attributes:
        now: the time by the monotonic clock.
        server_now: the time by the server's clock, in seconds since 1970.
        status: the status of the group; None while it is unknown.
        oplog_begins: cluster time of the oplog's oldest entry, in seconds since 1970; None if it can't be read.
        oplog_ends: cluster time of the oplog's newest entry.
        oplog_spare: estimated seconds until the oplog is full and drops its oldest entries.
        loop_delay: the longest delay of the event loop in the last seconds.
        dropped_lines: lines of the log and of receivers that could not be written.
        broker_errors: errors of connections to brokers of Kafka.
    """

    group: str
    version: str
    now: float
    server_now: float
    stats: Stats
    pipelines: dict[int, Gauges]
    status: GroupStatus | None = None
    oplog_begins: float | None = None
    oplog_ends: float | None = None
    oplog_spare: float = 0.0
    loop_delay: float = 0.0
    dropped_lines: int = 0
    broker_errors: int = 0

    @property
    def paused(self) -> list[str]:
        """The names of paused receivers; "*" means everything."""
        return [] if self.status is None else [one.receiver or "*" for one in self.status.paused]


def _counter(name: str, text: str, of: Callable[[Snapshot], Any], *labels: str) -> Described:
    return Described(name, text, of, "counter", labels)


def _by_receiver(kind: Kind, name: str, text: str, value: Callable[[ReceiverFigures], Any]) -> Described:
    def values(shot: Snapshot) -> Iterable[tuple[tuple[str, ...], Any]]:
        return [((one.receiver, one.signal), value(one)) for one in shot.stats.receivers.values()]

    return Described(name, text, values, kind, _RECEIVER)


def _by_partition(name: str, text: str, value: Callable[[Snapshot, Gauges], float | None]) -> Described:
    def values(shot: Snapshot) -> Iterable[tuple[tuple[str, ...], Any]]:
        return [((str(number),), value(shot, one)) for number, one in shot.pipelines.items()]

    return Described(name, text, values, labels=("partition",))


def _total(value: Callable[[Gauges], float]) -> Callable[[Snapshot], float]:
    return lambda shot: float(sum(value(one) for one in shot.pipelines.values()))


def _headroom(shot: Snapshot, one: Gauges) -> float | None:
    if shot.stats.topic is not None:  # the oplog need not hold the position
        return None
    return None if shot.oplog_begins is None else one.position_seconds - shot.oplog_begins + shot.oplog_spare


def _window(shot: Snapshot) -> float | None:
    return None if shot.oplog_begins is None or shot.oplog_ends is None else shot.oplog_ends - shot.oplog_begins


def _of_group(value: Callable[[GroupStatus], Any]) -> Callable[[Snapshot], Any]:
    return lambda shot: None if shot.status is None else value(shot.status)


def _in_dispatchers(value: Callable[[GroupStatus], Any]) -> Callable[[Snapshot], Any]:
    """A figure of a group that delivers. A relay has no such figure."""
    return _of_group(lambda status: None if status.is_relay else value(status))


def _of_claims(value: Callable[[list[ClaimGauges]], float]) -> Callable[[Snapshot], float | None]:
    """A figure of the deliveries that wait in this process for writing processes."""

    def of(shot: Snapshot) -> float | None:
        found = [one.claims for one in shot.pipelines.values() if one.claims is not None]
        return value(found) if shot.stats.relay is None else None

    return of


def _in_dispatcher(
    value: Callable[[Snapshot, Gauges], float | None],
) -> Callable[[Snapshot, Gauges], float | None]:
    """A figure of a partition in a dispatcher. A relay has no such figure."""
    return lambda shot, one: value(shot, one) if shot.stats.relay is None else None


def _of_relay(value: Callable[[RelayFigures, Gauges | None], Any]) -> Callable[[Snapshot], Any]:
    """A figure of a relay. The gauges are None in a process that stands by."""

    def of(shot: Snapshot) -> Any:
        relay = shot.stats.relay
        return None if relay is None else value(relay, next(iter(shot.pipelines.values()), None))

    return of


def _of_topic(value: Callable[[TopicFigures], Any]) -> Callable[[Snapshot], Any]:
    """A figure of a dispatcher that reads from a topic."""
    return lambda shot: None if shot.stats.topic is None else value(shot.stats.topic)


def _of_queues(value: Callable[[TopicGauges], float]) -> Callable[[Snapshot], float | None]:
    """The sum of a gauge over the partitions of the topic that this process reads."""

    def of(shot: Snapshot) -> float | None:
        if shot.stats.topic is None:
            return None
        return float(sum(value(one.topic) for one in shot.pipelines.values() if one.topic is not None))

    return of


def _in_record(shot: Snapshot, one: Gauges) -> float | None:
    """The headroom in the topic."""
    if one.topic is None or shot.stats.topic is None:
        return None
    age = shot.server_now - one.position_seconds
    return topic_headroom(one.topic.retention_seconds, age, all_read=not one.topic.lag_records and not one.queued)


def _term(relay: RelayFigures, one: Gauges | None) -> float:
    return 0.0 if one is None else float(relay.term)


def _with_kafka(shot: Snapshot, value: float) -> float | None:
    return None if shot.stats.topic is None and shot.stats.relay is None else value


def _topic_answers(shot: Snapshot) -> float | None:
    if not any(one.topic is not None for one in shot.pipelines.values()):
        return None
    return float(not any(one.topic is not None and one.topic.trouble for one in shot.pipelines.values()))


METRICS: Final = (
    Described(
        "info",
        "Always 1; the labels have the running version, and the role of the process: dispatcher or relay.",
        lambda s: [((s.version, "dispatcher" if s.stats.relay is None else "relay"), 1)],
        labels=("version", "role"),
    ),
    # The group.
    Described(
        "health",
        "The group's health: one sample for each word, 1 for the present word, 0 for the others. The words: "
        "failing, blocked, behind, delivering, idle, paused, down.",
        _of_group(lambda s: [((word,), float(word == s.health.health)) for word in WORDS]),
        labels=("health",),
    ),
    Described(
        "receiver_health",
        "Always 1; the label is the receiver's health in one word.",
        _of_group(
            lambda s: [((r.receiver, r.signal, r.health), 1.0) for r in s.health.receivers[:MOST_RECEIVERS]]
        ),
        labels=(*_RECEIVER, "health"),
    ),
    # Counters.
    _counter("changes_read", "Change events that arrived.", lambda s: s.stats.read),
    _counter(
        "invalid_documents",
        "Changes that could not be decoded, or did not fit their model.",
        lambda s: s.stats.invalid,
    ),
    _by_receiver("counter", "deliveries", "Deliveries whose receiver returned.", lambda r: r.delivered),
    _by_receiver(
        "counter", "delivery_failures", "Deliveries given up after their last attempt.", lambda r: r.failed
    ),
    _by_receiver(
        "counter", "delivery_retries", "Attempts after the first attempt of a delivery.", lambda r: r.retried
    ),
    _by_receiver(
        "counter",
        "delivery_retry_after",
        "Attempts that ended with `RetryAfter`: the receiver asked for another attempt later.",
        lambda r: r.postponed,
    ),
    _by_receiver(
        "counter",
        "delivery_limited",
        "How often a delivery was parked because of `concurrency` or `rate` of its receiver.",
        lambda r: r.limited,
    ),
    _by_receiver(
        "counter",
        "delivery_conflicts",
        "Runs of a transactional receiver that were repeated after a write conflict.",
        lambda r: r.conflicts,
    ),
    _counter(
        "deliveries_withheld",
        "Changes that a receiver did not get because of their origin stamp: the receiver `ran` in the writing "
        "process, or the write was `muted`.",
        lambda s: [
            ((one.receiver, one.signal, reason), count)
            for one in s.stats.receivers.values()
            for reason, count in one.withheld.items()
        ],
        *_RECEIVER,
        "reason",
    ),
    _counter(
        "late_stamps",
        "Writes of the application that arrived too long after their stamp was made; receivers that ran in the "
        "writing process got them again, under the same `delivery.id`.",
        lambda s: s.stats.late_stamps,
    ),
    _counter(
        "untouched_changes",
        "Updates that changed nothing but the origin stamp; no receiver gets them.",
        lambda s: s.stats.untouched,
    ),
    _counter("dead_letters_written", "Dead letters that were written.", lambda s: s.stats.dead_letters),
    _counter("deliveries_parked", "Deliveries that were parked.", lambda s: s.stats.parked),
    _counter(
        "claims_taken_over",
        "Claimed deliveries that were made here, because the writing process did not finish them.",
        lambda s: s.stats.taken_over,
    ),
    _counter(
        "claims_orphaned",
        "Claimed deliveries that were parked, because the application does not have their receiver.",
        lambda s: s.stats.orphaned,
    ),
    _counter("stream_reconnects", "How often a change stream was opened again.", lambda s: s.stats.reconnects),
    _counter("position_saves", "How often a position was saved.", lambda s: s.stats.saves),
    _counter(
        "lease_changes",
        "Partitions that this process took over, gave up or lost.",
        lambda s: s.stats.lease_changes,
    ),
    _counter("gaps", "Gaps that were recorded: changes that can't be delivered.", lambda s: s.stats.gaps),
    _counter(
        "log_lines_dropped",
        "Lines of the log and of the output of receivers that could not be written within a second.",
        lambda s: s.dropped_lines,
    ),
    # Durations.
    _by_receiver(
        "histogram",
        "delivery_latency_seconds",
        "Seconds from the commit of a change to the start of its receiver's first attempt; at most a thousand "
        "attempts per second are observed.",
        lambda r: r.latency,
    ),
    _by_receiver(
        "histogram",
        "receiver_duration_seconds",
        "How long attempts of a receiver took; at most a thousand attempts per second are observed.",
        lambda r: r.duration,
    ),
    _by_receiver(
        "histogram",
        "batch_size",
        "Events in the batch of each attempt of a batch receiver; a batch counts for the signal of its first "
        "event.",
        lambda r: r.batches,
    ),
    # The present.
    _by_partition(
        "lag_seconds",
        "How long the oldest undelivered change has waited; 0 if there is none.",
        _in_dispatcher(lambda _, g: g.lag_seconds),
    ),
    _by_partition(
        "delivery_lag_seconds",
        "How long the oldest change that is read and not delivered has waited; 0 if there is none.",
        _in_dispatcher(lambda _, g: g.waiting_seconds),
    ),
    _by_partition(
        "lag_changes_estimate",
        "Undelivered changes; the number of unread changes is estimated from the rate of the changes that were "
        "read last.",
        _in_dispatcher(lambda _, g: g.lag_changes),
    ),
    Described("in_flight", "Deliveries in flight.", _total(lambda g: g.in_flight)),
    Described("queued_changes", "Changes that are read and not finished yet.", _total(lambda g: g.queued)),
    Described("queued_bytes", "Bytes of the events of queued changes.", _total(lambda g: g.queued_bytes)),
    _by_partition(
        "stream_connected",
        "Whether the change stream is open, or the topic can be read: 1 or 0.",
        lambda _, g: float(g.connected),
    ),
    _by_partition(
        "position_age_seconds",
        "How far the position lies behind the server's clock. Everything up to the position is delivered or, "
        "in a relay, published.",
        lambda s, g: max(0.0, s.server_now - g.position_seconds),
    ),
    _by_partition(
        "position_saved_age_seconds",
        "Seconds since the last save of the position, or the last check that found nothing new to save.",
        lambda s, g: max(0.0, s.now - g.saved_seconds),
    ),
    Described(
        "oplog_window_seconds",
        "Seconds of the past that the oplog holds; absent without the privilege serverStatus, and with a mongos.",
        _window,
    ),
    _by_partition(
        "oplog_headroom_seconds",
        "Estimated seconds until the oplog drops the position, if the position does not move; "
        "absent without the privilege serverStatus, with a mongos, and for a group that reads from a topic.",
        _headroom,
    ),
    Described(
        "event_loop_delay_seconds",
        "The longest delay of the event loop in the last seconds; a receiver that blocks the loop stops all "
        "others.",
        lambda s: s.loop_delay,
    ),
    Described(
        "partitions",
        "Partitions in the layout of the group.",
        lambda s: s.status.partition_count if s.status else 1,
    ),
    Described("partitions_held", "Partitions that this process holds.", lambda s: len(s.pipelines)),
    Described("members", "Processes of the group that are alive.", _of_group(lambda s: len(s.alive))),
    Described("dead_letters", "Dead letters of the group.", _of_group(lambda s: s.dead_letter_count)),
    Described(
        "parked_deliveries", "Deliveries of the group that are parked.", _of_group(lambda s: s.parked_deliveries)
    ),
    Described(
        "claims_waiting",
        "Deliveries in memory that wait for writing processes: claimed deliveries, and later deliveries of the "
        "same documents to the same receivers.",
        _of_claims(lambda found: sum(one.waiting for one in found)),
    ),
    Described(
        "oldest_claim_seconds",
        "Seconds since the commit of the oldest write whose deliveries wait for the writing process, in memory "
        "or parked; 0 if there is none.",
        _in_dispatchers(lambda s: s.claims.oldest_seconds),
    ),
    Described(
        "claims_open",
        "Claims that writing processes have not finished, by their last beats.",
        _in_dispatchers(lambda s: s.claims.open),
    ),
    Described(
        "claims_released",
        "Claims that living writing processes have left to the dispatchers.",
        _in_dispatchers(lambda s: s.claims.released),
    ),
    Described(
        "claiming_processes",
        "Writing processes that claim, and are alive.",
        _in_dispatchers(lambda s: s.claims.processes),
    ),
    Described("paused", "Whether the whole group is paused: 1 or 0.", lambda s: float("*" in s.paused)),
    Described(
        "paused_receivers", "Receivers that are paused by name.", lambda s: float(len(set(s.paused) - {"*"}))
    ),
    # Kafka: dispatchers that read from a topic.
    _counter("topic_records_read", "Records of the topic that were read.", _of_topic(lambda t: t.records)),
    _counter(
        "topic_records_dropped",
        "Records of the topic without an effect. `duplicate`: the event was read before. `stale`: the record is "
        "of an earlier term of the relay. `ahead`: an earlier record is missing, and the relay publishes both "
        "again.",
        _of_topic(lambda t: [((reason,), count) for reason, count in t.dropped.items()]),
        "reason",
    ),
    _by_partition(
        "topic_lag_records",
        "Broker lag: records of the topic, up to the position of the relay, that are not read.",
        lambda s, g: None if g.topic is None or s.stats.topic is None else g.topic.lag_records,
    ),
    _by_partition(
        "topic_headroom_seconds",
        "Seconds until the retention of the topic may delete undelivered records, if the position does not move; "
        "absent without a retention time.",
        _in_record,
    ),
    Described(
        "topic_retention_seconds",
        "Seconds for which the topic keeps a record; absent without a retention time.",
        lambda s: (
            None
            if s.stats.topic is None
            else next((one.topic.retention_seconds for one in s.pipelines.values() if one.topic is not None), None)
        ),
    ),
    Described(
        "topic_buffered_bytes",
        "Bytes of records that have arrived from the brokers and are not read: at most about half of "
        "`--max-queued-mb`.",
        _of_queues(lambda t: t.buffered_bytes),
    ),
    Described(
        "topic_partitions_paused",
        "Partitions that are not fetched, because their queue is full.",
        _of_queues(lambda t: float(t.is_paused)),
    ),
    Described(
        "relay_members",
        "Processes of the relay that are alive, for a group that reads from its topic.",
        _of_group(lambda s: None if s.is_relay or s.relay is None else len(s.relay.alive)),
    ),
    # Kafka: relays, and both.
    _counter(
        "broker_errors", "Errors of connections to brokers of Kafka.", lambda s: _with_kafka(s, s.broker_errors)
    ),
    Described(
        "topic_connected",
        "Whether the brokers answer and accept what this process asks of the topic: 1 or 0.",
        _topic_answers,
    ),
    _counter(
        "relay_records_published",
        "Records that the brokers have acknowledged: one for each change event, and one in each partition "
        "whenever history is lost.",
        _of_relay(lambda r, _: r.records),
    ),
    _counter(
        "relay_bytes_published",
        "Bytes of the published records, before compression.",
        _of_relay(lambda r, _: r.bytes),
    ),
    _counter(
        "relay_large_events",
        "Events that do not fit into a record, so that they are files in the state.",
        _of_relay(lambda r, _: r.large_events),
    ),
    _counter(
        "relay_terms",
        "Terms that began, by cause. `lease`: the process took over, or renewed its lease late. `error`: a record "
        "was not acknowledged. `topic`: the topic was deleted. `replaced`: another process had begun a term.",
        _of_relay(lambda r, _: [((cause,), count) for cause, count in r.terms.items()]),
        "cause",
    ),
    Described("relay_term", "The present term of the relay; 0 in a process that stands by.", _of_relay(_term)),
    Described(
        "relay_position_seconds",
        "Cluster time of the relay's position, in seconds since 1970. All changes up to it are acknowledged.",
        _of_relay(lambda _, g: None if g is None else g.position_seconds),
    ),
    Described(
        "relay_lag_seconds",
        "Relay lag: how long the oldest change that is not acknowledged by the brokers has waited; 0 if there is "
        "none.",
        _of_relay(lambda _, g: None if g is None else g.lag_seconds),
    ),
    Described(
        "relay_records_in_flight",
        "Records that the brokers have not acknowledged yet.",
        _of_relay(lambda _, g: 0 if g is None else g.queued),
    ),
    Described(
        "relay_bytes_in_flight",
        "Bytes of the records in flight, at most about `--max-queued-mb`.",
        _of_relay(lambda _, g: 0 if g is None else g.queued_bytes),
    ),
)
"""All metrics, in the order of the documentation."""


class Metrics(Collector):
    """The metrics of one process."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the registry must not request a snapshot too early."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All metrics at this moment."""
        shot = self._snapshot()
        for described in METRICS:
            family = _family(described)
            values = described.of(shot)
            if values is None:
                continue
            for labels, value in values if isinstance(values, Iterable) else [((), values)]:
                if value is not None:
                    _add(family, (shot.group, *labels), value)
            yield family


def _family(described: Described) -> Any:
    kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
    labels = ("group", *described.labels)
    return kinds[described.kind](f"{PREFIX}{described.name}", described.help, labels=labels)


def _add(family: Any, labels: tuple[str, ...], value: Any) -> None:
    if not isinstance(value, Histogram):
        family.add_metric(labels, value)
        return
    cumulated = accumulate(value.counts)
    bounds = [*map(str, value.bounds), "+Inf"]
    family.add_metric(labels, buckets=list(zip(bounds, cumulated, strict=True)), sum_value=value.sum)
