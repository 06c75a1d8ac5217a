"""Receivers: functions that are connected to a signal, with their options and identities."""

import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from bson import Timestamp

from mongoz.exceptions import SignalError
from mongoz.signals.names import BATCH_KEYWORDS, KEYWORDS
from mongoz.signals.options import DeliveryMode, Options, options_of
from mongoz.stamps import ContextValues, receiver_id
from mongoz.synonyms import nearest

__all__ = [
    "BatchEvent",
    "Delivery",
    "Receiver",
    "ReceiverFunction",
    "importable_name",
    "make_receiver",
    "stamp_ids",
    "with_ids",
]

ReceiverFunction = Callable[..., Awaitable[Any]]


@dataclass(slots=True, eq=False)
class Delivery:
    """The delivery, which a `post_*` receiver gets as the keyword `delivery`.

    Attributes:
        id: the same for every attempt to deliver the same write; use it for deduplication. In process and in a
            takeover, it is the token of the write. If a write takes so long that its stamp does not count any
            more, the dispatcher uses this token too. In other deliveries of a dispatcher, the id is derived from
            the resume token of the change. Each replay and each backfill has ids of its own.
        signal: name of the signal, `"post_save"` for example.
        receiver: name of the receiver, the same in all processes.
        origin: `"process"` (awaited by the writer), `"stream"` (delivered by a dispatcher), or `"takeover"`
            (delivered by a dispatcher in the place of the writing process, which died or released its claim).
        attempt: 1, 2, ...; above 1 only in the dispatcher.
        term: grows whenever another dispatcher process takes over, so that an external system can refuse calls
            with a smaller term. 0 in process.
        cluster_time: the server's time of the write; None in process.
        wall_time: the server's wall clock at the write, naive UTC; None in process.
        image: the state of `instance`: `"post"` the document right after this write, `"current"` the document
            when the dispatcher looked it up (it may contain later writes), `"pre"` the document right before its
            deletion, `"key"` only its id.
        replayed: True in a replay, in a backfill, and for a retried dead letter: there is no new write.
        session: the session of a transactional receiver, else None.
        superseded: True in a takeover if a later write of the ODM has changed the document, or if the document is
            gone. Then the receiver may have run for later writes, and `instance` is the current document, or has
            only the id.
        context: the values of `mongoz.context(...)` around the write, read-only; None for a write without a
            context, and for a write of another client.
    """

    id: str
    signal: str
    receiver: str
    origin: Literal["process", "stream", "takeover"]
    attempt: int = 1
    term: int = 0
    cluster_time: Timestamp | None = None
    wall_time: Any = None
    image: Literal["post", "current", "pre", "key"] = "post"
    replayed: bool = False
    session: Any = None
    superseded: bool = False
    context: ContextValues | None = None

    def as_dict(self) -> dict[str, Any]:
        """The attributes by name, for example for an audit trail."""
        return {one.name: getattr(self, one.name) for one in fields(Delivery)}

    def replaced(self, **values: Any) -> "Delivery":
        """A copy with other values of some attributes."""
        return Delivery(**self.as_dict() | values)

    def _values(self) -> tuple[Any, ...]:
        return tuple(self.as_dict().values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Delivery) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __reduce__(self) -> tuple[Any, ...]:
        return Delivery, self._values()


class BatchEvent(NamedTuple):
    """One event of a batch: the keywords that a receiver without the option `batch` gets.

    Attributes:
        instance: the document; `delivery.image` says in which state.
        delivery: the delivery of this event. `delivery.signal` is the name of the signal; each event has its own
            `delivery.id`.
        created: whether the document was inserted; False for other signals than `post_save`.
        update_fields: the changed fields of a `post_update`; empty for other signals.
        previous: the document before the change, if the server keeps pre images; else None.
    """

    instance: Any
    delivery: Delivery
    created: bool = False
    update_fields: frozenset[str] = frozenset()
    previous: Any = None


@dataclass(eq=False, slots=True)
class Receiver:
    """One connection of a function to a signal.

    Attributes:
        function: the async callable.
        name: `module.qualname` of the function, or the option `name`.
        sequence: the place in the order of all connections of this process.
        options: where the receiver runs, for which changes, and how failures are handled.
        id: eight bytes that identify the receiver; empty unless the signal is a `post_*` signal of a document.
        former_ids: the ids that the receiver had under earlier names.
        defined_at: file and line of the definition, for messages.
    """

    function: ReceiverFunction
    name: str
    sequence: int
    options: Options = field(default_factory=Options)
    id: bytes = b""
    former_ids: tuple[bytes, ...] = ()
    defined_at: str = field(default="", repr=False)

    @property
    def delivery(self) -> DeliveryMode:
        """Where the receiver runs."""
        return self.options.delivery

    @property
    def ids(self) -> tuple[bytes, ...]:
        """The present id and the former ids. Data of the dispatcher may contain an id of an earlier name."""
        return (self.id, *self.former_ids)

    @property
    def runs_in_process(self) -> bool:
        """Whether the writing process calls the receiver."""
        return self.options.delivery != "dispatcher"

    @property
    def runs_in_dispatcher(self) -> bool:
        """Whether a dispatcher may call the receiver."""
        return self.options.delivery != "process"


def make_receiver(
    function: Any, *, signal: str, sender: type | None, sequence: int, options: Mapping[str, Any]
) -> Receiver:
    """Make a receiver from a callable and its options.

    Raises:
        SignalError: the callable is not async, lacks the parameters `sender` or `**kwargs`, or an option is wrong.
    """
    label = _label(function)
    _check_async(function, label)
    checked = options_of(options, signal=signal, label=label)
    _check_signature(function, label, signal, is_batch=checked.batch is not None)
    _check_fields(checked, sender, label)
    name = checked.name or importable_name(_underlying(function))
    made = Receiver(function, name, sequence, checked, defined_at=_defined_at(function))
    return made if sender is None else with_ids(made, sender, signal)


def with_ids(receiver: Receiver, sender: type, signal: str) -> Receiver:
    """The receiver with its ids for a signal of this document."""
    owner = importable_name(sender)
    former = tuple(receiver_id((owner, signal, name)) for name in receiver.options.formerly)
    return replace(receiver, id=receiver_id((owner, signal, receiver.name)), former_ids=former)


def stamp_ids(receiver: Receiver, sender: type, signal: str) -> tuple[bytes, ...]:
    """The ids of a receiver in the stamps of one document, by its present and earlier names.

    The ids depend on the document class: several classes that inherit the receiver may share a collection, but
    each write belongs to one class.
    """
    owner = importable_name(sender)
    return tuple(receiver_id((owner, signal, name)) for name in (receiver.name, *receiver.options.formerly))


def _check_fields(options: Options, sender: Any, label: str) -> None:
    known = getattr(sender, "model_fields", {})
    for name in sorted(options.fields):
        if sender is not None and name not in known:
            raise SignalError(
                f"fields={name!r} of {label}: {sender.__name__} has no such field.{nearest(name, known)}"
            )


def importable_name(thing: Any) -> str:
    """`module.qualname`, with `__main__` replaced by the importable name of its file.

    A script runs as `__main__`, and the dispatcher imports the same file by its name. The result must be the same
    in both processes. If the file is outside of `sys.path`, `__main__` stays.
    """
    module = getattr(thing, "__module__", None) or type(thing).__module__
    qualname = getattr(thing, "__qualname__", None) or type(thing).__qualname__
    if module == "__main__":
        module = _main_module()
    return f"{module}.{qualname}"


def _main_module() -> str:
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:  # started with `python -m package.module`
        return str(spec.name).removesuffix(".__main__")
    file = getattr(main, "__file__", None)
    if not file:
        return "__main__"
    path = Path(file).resolve().with_suffix("")
    for root in sorted((Path(entry or ".").resolve() for entry in sys.path), key=lambda p: -len(p.parts)):
        # The script's own folder is on the path too, so a script in a package has two names. The folders of a
        # package are skipped.
        if path.is_relative_to(root) and not (root / "__init__.py").exists():
            return ".".join(path.relative_to(root).parts)
    return "__main__"


def _underlying(function: Any) -> Any:
    """The function inside of partials; for an object with `__call__`, the object."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _label(function: Any) -> str:
    thing = _underlying(function)
    return f"receiver {getattr(thing, '__qualname__', None) or repr(thing)}"


def _defined_at(function: Any) -> str:
    thing = inspect.unwrap(_underlying(function)) if callable(function) else function
    code = getattr(thing, "__code__", None) or getattr(getattr(thing, "__func__", None), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else ""


_NAMED: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _check_async(function: Any, label: str) -> None:
    if not callable(function):
        raise SignalError(f"{label} is not callable; connect an async function.")
    thing = _underlying(function)
    # iscoroutinefunction also recognizes AsyncMock, and functions that inspect.markcoroutinefunction marks.
    if inspect.iscoroutinefunction(thing) or inspect.iscoroutinefunction(getattr(thing, "__call__", None)):  # noqa: B004 - this asks about the method
        return
    if _is_async_mock(thing):
        return
    raise SignalError(f"{label} is not async; declare it with 'async def'.")


def _is_async_mock(thing: Any) -> bool:
    """Whether it is an AsyncMock. The check reads the object's own dict: a Mock has every attribute."""
    return "_is_coroutine" in getattr(thing, "__dict__", {})


def _check_signature(function: Any, label: str, signal: str, *, is_batch: bool) -> None:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # it has no signature to check
        return
    kinds = [parameter.kind for parameter in parameters]
    first = parameters[0] if parameters else None
    takes_sender = first is not None and (
        first.kind is first.VAR_POSITIONAL
        or (first.name == "sender" and first.kind in {first.POSITIONAL_OR_KEYWORD, first.KEYWORD_ONLY})
    )
    missing = []
    if not takes_sender:
        missing.append("'sender' as its first parameter")
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        missing.append("'**kwargs'")
    if missing:
        raise SignalError(
            f"{label} must take {' and '.join(missing)}; "
            f"write it as 'async def receiver(sender, {'batch' if is_batch else 'instance'}, **kwargs)'."
        )
    sent = BATCH_KEYWORDS if is_batch else KEYWORDS.get(signal)
    for parameter in parameters:
        required = parameter.default is parameter.empty and parameter.kind in _NAMED
        if sent is not None and required and parameter.name not in sent:
            what = f"a batch of {signal}" if is_batch else signal
            raise SignalError(
                f"{label} requires {parameter.name!r}, which {what} does not send.{nearest(parameter.name, sent)}"
            )
