"""Asks the brokers of Kafka about clusters and topics, and tells why they refuse or do not answer.

librdkafka reports the failures of connections to a callback, and ends the request with a plain timeout. So the
error of a request contains the last failure that the callback got during the request.
"""

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dispatcher.core.retry import pause_after
from dispatcher.exceptions import KafkaError, TopicError

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

# Seconds between two calls of the callback.
_POLL: Final = 0.05

# The text of a failure, for example "sasl_ssl://host:9092/bootstrap: text (after 303ms in state AUTH_REQ)".
_FAILURE: Final = re.compile(
    r"(?:\w+://)?(?P<address>\S+?)/(?:bootstrap|\d+): (?P<text>.*?)(?: \(after [^()]*\))?\.?", re.DOTALL
)

# The name of the error that says that there are no connections. It does not say why: a broker that expects TLS
# closes them, and librdkafka closes a connection on which a broker does not answer for 10 s.
_NO_CONNECTION: Final = "_ALL_BROKERS_DOWN"

_UNANSWERED: Final = frozenset({"_TIMED_OUT", "_TRANSPORT", "_RESOLVE", "_SSL", _NO_CONNECTION})

_REFUSED_USER: Final = frozenset({"_AUTHENTICATION", "SASL_AUTHENTICATION_FAILED"})

_REFUSED_REQUEST: Final = frozenset(
    {"TOPIC_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED", "GROUP_AUTHORIZATION_FAILED"}
)

RIGHTS: Final = (
    "Grant the rights that `dispatcher check APP --kafka HOST:PORT --role` prints; for a relay, add --relay."
)
"""The remedy for a missing right."""


class _LostConnection(NamedTuple):
    """The failure of a connection.

    Attributes:
        name: the name of the error.
        address: the address of the broker; empty if the failure concerns all brokers.
    """

    name: str
    address: str
    text: str


class Admin:
    """A client for administration.

    Args:
        make: takes a callback for failures of connections, and makes the client.
        servers: the addresses of `--kafka`.
        patience: seconds for each request.

    Raises:
        KafkaError: a property is wrong.
    """

    def __init__(
        self, make: "Callable[[Callable[[Any], None]], AdminClient]", servers: str, patience: float
    ) -> None:
        self._failure: _LostConnection | None = None
        self._servers = servers
        self._patience = patience
        self._client = make(self._note)

    async def ask(self, place: str, request: "Callable[[AdminClient, float], Future[Any]]") -> Any:
        """Send a request, and wait for the answer. If brokers can't answer now, send it again.

        Args:
            place: what the request is about, for errors.
            request: gets the client and the seconds for the request, and returns a future.

        Raises:
            KafkaError: no broker answers in time, or the user is refused.
            TopicError: the request is refused.
        """
        (answer,) = await self.ask_all(place, lambda client, within: [request(client, within)])
        return answer

    async def ask_all(
        self, place: str, request: "Callable[[AdminClient, float], Iterable[Future[Any]]]"
    ) -> list[Any]:
        """Like `ask`, for a request with several answers."""
        deadline, failures = monotonic() + self._patience, 0
        while True:
            try:
                return await self._ask_once(place, request)
            except KafkaError as error:
                failures += 1
                pause = pause_after(failures)
                if code_of(error) not in _PASSING or monotonic() + pause > deadline:
                    raise
            await asyncio.sleep(pause)

    async def _ask_once(
        self, place: str, request: "Callable[[AdminClient, float], Iterable[Future[Any]]]"
    ) -> list[Any]:
        from confluent_kafka import KafkaException  # noqa: PLC0415 - an extra

        self._failure = None
        answer = asyncio.gather(*map(asyncio.wrap_future, request(self._client, self._patience)))
        while not answer.done():
            await asyncio.wait([answer], timeout=_POLL)
            self._client.poll(0)
            if self._is_refused and not answer.done():
                answer.cancel()
                await asyncio.wait([answer])
                _ = answer.exception()  # read, so that asyncio does not warn
                raise self._unanswered(place)  # further attempts would be refused too
        try:
            return answer.result()
        except KafkaException as error:
            cause = error.args[0]
            if cause.name() in _UNANSWERED:
                raise self._unanswered(place) from error
            raise _refused(cause, place) from error

    @property
    def _is_refused(self) -> bool:
        """Returns whether a broker has refused the user."""
        return self._failure is not None and self._failure.name in _REFUSED_USER

    def _note(self, error: Any) -> None:
        """Record a failure. A failure without a reason does not replace an earlier failure."""
        if error.name() == _NO_CONNECTION:
            self._failure = self._failure or _LostConnection(_NO_CONNECTION, "", "")
            return
        text = str(error.str())
        found = _FAILURE.fullmatch(text)
        address, text = ("", text.rstrip(".")) if found is None else (found["address"], found["text"])
        self._failure = _LostConnection(error.name(), address, text)

    def _unanswered(self, place: str) -> KafkaError:
        """The error for brokers that do not answer, with the last failure of a connection."""
        failure = self._failure
        asked = f"within {self._patience:g} s (asked about {place})"
        if failure is None:
            return KafkaError(
                f"No broker of Kafka answers at {self._servers} {asked}.",
                remedy="Are the brokers running, are the addresses of --kafka right, may this machine reach them?",
            )
        if failure.name == _NO_CONNECTION:
            return KafkaError(
                f"No broker of Kafka answers at {self._servers} {asked}. The connections end without an answer.",
                remedy="Are the brokers running? If they require TLS or a password, set security.protocol in "
                "--kafka-config.",
            )
        address = failure.address or self._servers
        if failure.name in _REFUSED_USER:
            return KafkaError(
                f"The broker of Kafka at {address} refuses the user: {failure.text}.",
                remedy="Correct security.protocol, sasl.mechanisms, sasl.username and sasl.password in "
                "--kafka-config.",
            )
        if "SSL" in failure.text:
            return KafkaError(
                f"The TLS connection to the broker of Kafka at {address} fails: {failure.text}.",
                remedy="In --kafka-config, set ssl.ca.location to the certificate of the broker's authority, and "
                "security.protocol to the protocol of the listener. In --kafka, write the host as in the "
                "certificate.",
            )
        remedy = "Are the brokers running, are the addresses of --kafka right, may this machine reach them?"
        if failure.address and failure.address not in self._servers.split(","):
            remedy = (
                "The brokers advertise this address to their clients: set advertised.listeners to an address "
                "that this machine can reach."
            )
        return KafkaError(
            f"No broker of Kafka answers at {self._servers} {asked}: {address}: {failure.text}.", remedy=remedy
        )


def code_of(error: KafkaError) -> str:
    """The name of the broker's error; empty if the error comes from this program."""
    cause: Any = error.__cause__
    return "" if cause is None else str(cause.args[0].name())


# Errors of brokers while they restart, while a leader is elected, or before they know a new topic.
_PASSING: Final = (
    *("BROKER_NOT_AVAILABLE", "COORDINATOR_LOAD_IN_PROGRESS", "COORDINATOR_NOT_AVAILABLE", "FENCED_LEADER_EPOCH"),
    *("INVALID_REPLICATION_FACTOR", "KAFKA_STORAGE_ERROR", "LEADER_NOT_AVAILABLE", "NETWORK_EXCEPTION"),
    *("NOT_CONTROLLER", "NOT_LEADER_FOR_PARTITION", "OFFSET_NOT_AVAILABLE", "REPLICA_NOT_AVAILABLE"),
    *("REQUEST_TIMED_OUT", "STALE_BROKER_EPOCH", "THROTTLING_QUOTA_EXCEEDED", "UNKNOWN_LEADER_EPOCH"),
    *("_UNKNOWN_BROKER", "_WAIT_COORD"),
)


class _Refusal(NamedTuple):
    """The text, the remedy and the class of the error that an operator gets for an error of a broker."""

    text: str
    remedy: str
    kind: type[KafkaError]


_OTHER: Final = _Refusal(
    "Kafka refuses a request about {place}", "If this lasts, look at the log of the broker.", TopicError
)
_REFUSALS: Final[Mapping[str, _Refusal]] = {
    **dict.fromkeys(
        _PASSING,
        _Refusal(
            "The brokers of Kafka can't answer a request about {place} now",
            "If this lasts, look at the logs of the brokers: are enough of them running?",
            KafkaError,
        ),
    ),
    **dict.fromkeys(
        _REFUSED_REQUEST, _Refusal("Kafka does not allow this user a request about {place}", RIGHTS, KafkaError)
    ),
    **dict.fromkeys(
        _REFUSED_USER,
        _Refusal(
            "Kafka refuses the user in a request about {place}",
            "Correct sasl.username, sasl.password and sasl.mechanisms in --kafka-config.",
            KafkaError,
        ),
    ),
    "TOPIC_EXCEPTION": _Refusal(
        "Kafka does not accept the name of {place}",
        "Choose a name of letters, digits, '.', '_' and '-'. The flag is --name for a relay, and --kafka-topic "
        "for a dispatcher.",
        TopicError,
    ),
}


def _refused(cause: Any, place: str) -> KafkaError:
    refusal = _REFUSALS.get(cause.name(), _OTHER)
    text = str(cause.str()).rstrip(".")
    return refusal.kind(f"{refusal.text.format(place=place)}: {text} ({cause.name()}).", remedy=refusal.remedy)
