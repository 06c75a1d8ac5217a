"""The options of a `post_*` receiver: where it runs, for which changes, and how failures are handled."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Final, Literal, TypedDict, get_args

from mongoz.exceptions import SignalError
from mongoz.signals.names import POST
from mongoz.synonyms import nearest

__all__ = ["Batch", "DeliveryMode", "OnFailure", "Options", "Rate", "ReceiverOptions", "Retry", "options_of"]

DeliveryMode = Literal["any", "process", "dispatcher"]
"""Where a `post_*` receiver runs.

`"any"`: in the writing process for writes of this ODM, in the dispatcher for all other writes.
`"process"`: never in the dispatcher. `"dispatcher"`: in the dispatcher only, for every write.
"""

OnFailure = Literal["dead_letter", "block", "drop"]
"""The action of a dispatcher after the last failed attempt.

`"dead_letter"`: keep the delivery, so that an operator can retry it. `"block"`: keep trying, while later changes
of the same document wait. `"drop"`: log the failure, and drop the delivery.
"""

_LONGEST_TRANSACTION: Final = 50.0  # seconds; the server ends transactions after 60


@dataclass(frozen=True, slots=True)
class Retry:
    """The attempts of a dispatcher at one delivery, and the growing pauses between them, with jitter.

    Attributes:
        attempts: the number of attempts.
        base: the maximum pause before the second attempt, in seconds. The maximum doubles with each further
            attempt.
        cap: the longest pause in seconds.

    Examples:
        >>> @post_save(User, retry=Retry(attempts=10, base=1.0))
        ... async def send_mail(sender, instance, **kwargs): ...
    """

    attempts: int = 5
    base: float = 0.1
    cap: float = 60.0

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1:
            raise SignalError(f"Retry(attempts={self.attempts!r}) must be an integer of at least 1.")
        for name, seconds in (("base", self.base), ("cap", self.cap)):
            if not _is_duration(seconds):
                raise SignalError(f"Retry({name}={seconds!r}) must be a positive number of seconds.")


_PERIODS: Final = {"s": 1.0, "min": 60.0, "h": 3_600.0, "day": 86_400.0}


@dataclass(frozen=True, slots=True)
class Rate:
    """A number of attempts in a period.

    Attributes:
        count: the number of attempts.
        period: `"s"`, `"min"`, `"h"` or `"day"`.
    """

    count: int
    period: str

    @property
    def seconds(self) -> float:
        """The length of the period in seconds."""
        return _PERIODS[self.period]

    @property
    def per_second(self) -> float:
        """The number of attempts in a second."""
        return self.count / self.seconds

    def __str__(self) -> str:
        return f"{self.count}/{self.period}"


@dataclass(frozen=True, slots=True)
class Batch:
    """The option `batch`: a dispatcher gathers deliveries, and passes many of them to the receiver in one call.

    The receiver is `async def receiver(sender, batch, **kwargs)`, and `batch` is a list of `BatchEvent`.

    Attributes:
        size: the maximum number of events in one batch.
        wait: the maximum time for which the first event of a batch waits for further events, in seconds. It waits
            less if the batch is full, or if the waiting events take too much of the dispatcher's queue.

    Examples:
        >>> @post_save(Product, batch=Batch(size=500, wait=0.2))
        ... async def index(sender, batch, **kwargs):
        ...     await search.bulk([event.instance for event in batch])
    """

    size: int = 500
    wait: float = 0.2

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise SignalError(f"Batch(size={self.size!r}) must be an integer of at least 1.")
        if not _is_duration(self.wait) and self.wait != 0:
            raise SignalError(f"Batch(wait={self.wait!r}) must be a number of seconds, 0 or more.")


class ReceiverOptions(TypedDict, total=False):
    """The options of `post_*` decorators and `Signal.connect`.

    Attributes:
        delivery: `"any"` (default), `"process"` or `"dispatcher"`: where the receiver runs, see `DeliveryMode`.
        name: a stable name for stamps, dead letters and metrics; by default `module.qualname`.
        formerly: one or several earlier names of a renamed receiver.
        fields: `post_update` only: run only if one of these fields, or a part of one, changed.
        where: a MongoDB match on the document, with stored names; implies `delivery="dispatcher"`. It is sent to
            the server unchanged: never build it from a user's input.
        retry: a dispatcher's attempts: a number, or a `Retry`; by default the dispatcher's setting (5).
        timeout: the time limit of a dispatcher's attempt in seconds; by default the dispatcher's setting (30).
        on_failure: `"dead_letter"` (default), `"block"` or `"drop"`: see `OnFailure`.
        transactional: run in a transaction of MongoDB, together with a record of the delivery; implies
            `delivery="dispatcher"`. Writes through `delivery.session`, or through the ODM, take effect once.
        concurrency: maximum number of attempts at the same time in each dispatcher process. A dispatcher calls
            receivers with `concurrency` or `rate` after the other receivers of a change.
        rate: maximum number of attempts of all dispatchers of the group in a period, such as `"100/min"`; the
            periods are s, min, h and day. Implies `delivery="dispatcher"`.
        batch: a `Batch`: call the receiver with a list of events; implies `delivery="dispatcher"`.
    """

    delivery: DeliveryMode | None
    name: str | None
    formerly: str | Iterable[str] | None
    fields: str | Iterable[str] | None
    where: Mapping[str, Any] | None
    retry: int | Retry | None
    timeout: float | None
    on_failure: OnFailure | None
    transactional: bool | None
    concurrency: int | None
    rate: str | None
    batch: Batch | None


@dataclass(frozen=True, slots=True)
class Options:
    """Checked options. None means "not given"; for `retry` and `timeout`, a dispatcher's setting then applies."""

    delivery: DeliveryMode = "any"
    name: str | None = None
    formerly: tuple[str, ...] = ()
    fields: frozenset[str] = frozenset()
    where: Mapping[str, Any] | None = field(default=None, hash=False)
    retry: Retry | None = None
    timeout: float | None = None
    on_failure: OnFailure = "dead_letter"
    transactional: bool = False
    concurrency: int | None = None
    rate: Rate | None = None

    @property
    def is_limited(self) -> bool:
        """Whether the receiver has the option `concurrency` or `rate`."""
        return self.concurrency is not None or self.rate is not None

    batch: Batch | None = None


def options_of(given: Mapping[str, Any], *, signal: str | None, label: str) -> Options:
    """Check the options of a receiver.

    Args:
        given: the caller's options; None means the default.
        signal: name of the signal.
        label: the receiver, for messages.

    Raises:
        SignalError: an option does not exist, has a wrong value, or contradicts the signal or another option.
    """
    for option in given:
        if option not in _KNOWN:
            raise SignalError(f"There is no option {option!r} for {label}.{nearest(option, _KNOWN)}")
    values = {option: value for option, value in given.items() if value is not None}
    if values and signal not in POST:
        raise SignalError(
            f"{next(iter(values))}= is for post_* signals; {signal or 'a custom signal'} runs in process only."
        )
    if "fields" in values and signal != "post_update":
        raise SignalError(f"fields= is for post_update; {signal} is about whole documents.")
    checked = {option: _CHECKS[option](value, label) for option, value in values.items()}
    options = Options(**{**checked, "delivery": _mode(checked, label)})
    if options.transactional and (options.timeout or 0) > _LONGEST_TRANSACTION:
        raise SignalError(
            f"timeout={options.timeout:g} of {label} is too long for a transactional receiver: the server ends "
            f"transactions after 60 s, so the maximum is {_LONGEST_TRANSACTION:g}."
        )
    return options


def _mode(checked: dict[str, Any], label: str) -> str:
    """The delivery mode; options that only a dispatcher supports imply "dispatcher"."""
    implied = next((option for option in ("where", "transactional", "rate", "batch") if checked.get(option)), None)
    given: str | None = checked.get("delivery")
    if implied and given not in {None, "dispatcher"}:
        raise SignalError(
            f"{implied}= of {label} implies delivery='dispatcher', which contradicts delivery={given!r}."
        )
    if implied:
        return "dispatcher"
    only = next((o for o in ("retry", "timeout", "on_failure", "concurrency") if o in checked), None)
    if given == "process" and only:
        raise SignalError(f"{only}= of {label} is for dispatchers, which delivery='process' excludes.")
    return given or "any"


def _choice(option: str, kind: Any) -> Any:
    def check(value: Any, label: str) -> Any:
        if value not in get_args(kind):
            raise SignalError(f"{option}={value!r} of {label} is none of {', '.join(map(repr, get_args(kind)))}.")
        return value

    return check


def _name(value: Any, label: str) -> str:
    if not (isinstance(value, str) and value):
        raise SignalError(f"name={value!r} of {label} must be a non-empty string.")
    return value


def _names(option: str) -> Any:
    def check(value: Any, label: str) -> tuple[str, ...]:
        names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else ()
        if not names or not all(isinstance(name, str) and name for name in names):
            raise SignalError(f"{option}={value!r} of {label} must be a name or a list of names.")
        return names

    return check


def _where(value: Any, label: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise SignalError(f"where={value!r} of {label} must be a MongoDB match, such as {{'status': 'paid'}}.")
    return MappingProxyType(dict(value))


def _retry(value: Any, label: str) -> Retry:
    if isinstance(value, Retry):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SignalError(f"retry={value!r} of {label} must be a number of attempts, or a Retry(...).")
    return Retry(value)


def _timeout(value: Any, label: str) -> float:
    if not _is_duration(value):
        raise SignalError(f"timeout={value!r} of {label} must be a positive number of seconds.")
    return float(value)


def _is_duration(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _transactional(value: Any, label: str) -> bool:
    if not isinstance(value, bool):
        raise SignalError(f"transactional={value!r} of {label} must be True or False.")
    return value


def _concurrency(value: Any, label: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SignalError(f"concurrency={value!r} of {label} must be an integer of at least 1.")
    return value


def _rate(value: Any, label: str) -> Rate:
    found = re.fullmatch(r"([1-9][0-9]{0,8})/(s|min|h|day)", value) if isinstance(value, str) else None
    if found is None:
        raise SignalError(
            f"rate={value!r} of {label} must be a whole number and a period, such as '100/min'. "
            f"The periods are {', '.join(_PERIODS)}."
        )
    return Rate(int(found[1]), found[2])


def _batch(value: Any, label: str) -> Batch:
    if not isinstance(value, Batch):
        raise SignalError(f"batch={value!r} of {label} must be a Batch, such as Batch(size=500, wait=0.2).")
    return value


_CHECKS: Final[dict[str, Any]] = {
    "delivery": _choice("delivery", DeliveryMode),
    "name": _name,
    "formerly": _names("formerly"),
    "fields": lambda value, label: frozenset(_names("fields")(value, label)),
    "where": _where,
    "retry": _retry,
    "timeout": _timeout,
    "on_failure": _choice("on_failure", OnFailure),
    "transactional": _transactional,
    "concurrency": _concurrency,
    "rate": _rate,
    "batch": _batch,
}
_KNOWN: Final = tuple(one.name for one in fields(Options))
