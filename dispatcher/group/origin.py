"""The source of a group's changes, for all of its partitions: change streams, or a topic."""

from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any, Protocol

from dispatcher.core.events import LogPlace
from dispatcher.core.resume_tokens import token_time
from dispatcher.core.state import State
from dispatcher.exceptions import TopicError
from dispatcher.kafka.acceptance import BEGINNING, resume
from dispatcher.kafka.config import config_of
from dispatcher.kafka.coverage import covered_since
from dispatcher.kafka.looks import TopicWatch
from dispatcher.kafka.relay_state import RelayStore
from dispatcher.position.documents import SavedPositions, Topic
from dispatcher.position.store import FirstPosition
from dispatcher.settings import Settings
from dispatcher.stream.scope import Scope


class ChangeOrigin(Protocol):
    """The source of a group."""

    @property
    def topic(self) -> Topic | None:
        """The topic; None for change streams."""

    @property
    def partitions(self) -> int | None:
        """The number of partitions that the source has; None if any number is possible."""

    @property
    def since(self) -> str:
        """The source has all changes after this token. Empty if the token is unknown."""

    def require_covered(self, scope: Scope, saved: SavedPositions) -> None:
        """Require that the source has all changes of the watched collections since the group's saved position."""

    async def first(self, parts: Mapping[int, Scope]) -> Mapping[int, FirstPosition]:
        """The positions at which some partitions begin now.

        Args:
            parts: their scopes, by number.
        """


async def origin_of(settings: Settings, state: State, now: Callable[[], Coroutine[Any, Any, str]]) -> ChangeOrigin:
    """The `ChangeOrigin` of the source in the settings. A `ChangeOrigin` reads no changes.

    Raises:
        KafkaError: no broker answers, or a broker refuses the user.
        TopicError: the topic or the relay can't be used.
    """
    if settings.kafka is None:
        return StreamOrigin(now)
    topic = settings.kafka_topic
    watch = TopicWatch(config_of(settings), topic, RelayStore(state, topic), address=state.address)
    await watch.open()
    return TopicOrigin(watch)


class StreamOrigin:
    """Change streams.

    Args:
        now: returns a token of this moment.
    """

    topic: Topic | None = None
    partitions: int | None = None
    since = ""

    def __init__(self, now: Callable[[], Coroutine[Any, Any, str]]) -> None:
        self._now = now

    def require_covered(self, scope: Scope, saved: SavedPositions) -> None:
        """Do nothing: an oplog has the changes of all collections."""

    async def first(self, parts: Mapping[int, Scope]) -> Mapping[int, FirstPosition]:
        """Positions at the present time."""
        token = await self._now()
        return {number: FirstPosition(token, scope.fingerprint) for number, scope in parts.items()}


class TopicOrigin:
    """A topic.

    Args:
        watch: an open `TopicWatch` of the topic.
    """

    def __init__(self, watch: TopicWatch) -> None:
        self.watch = watch
        self.topic: Topic | None = Topic(watch.layout.cluster, watch.layout.topic)
        self.partitions: int | None = watch.layout.partitions
        self.since = max(watch.relay.since.values(), default="")

    def require_covered(self, scope: Scope, saved: SavedPositions) -> None:
        """Require that the relay has published all changes of the watched collections since the saved position.

        From now on, `watch` raises an error if the relay stops publishing the changes of one of these collections.

        Raises:
            TopicError: the relay does not publish a collection, or began to publish it after the position.
        """
        for error in self.uncovered(scope, saved):
            raise error
        self.watch.keep_covered(scope)

    def require_since(self, scope: Scope, begins: str) -> None:
        """Require that the relay has published all changes of the watched collections since a token.

        Raises:
            TopicError: the relay does not publish a collection, or began to publish it after the token.
        """
        for error in self._uncovered_since(scope, begins):
            raise error

    def uncovered(self, scope: Scope, saved: SavedPositions) -> Iterator[TopicError]:
        """The errors about collections that the relay does not publish, or began to publish too late."""
        tokens = [one.token for one in saved.positions.values() if one.token is not None]
        return self._uncovered_since(scope, min(tokens, default=self.watch.relay.position.token))

    def _uncovered_since(self, scope: Scope, begins: str) -> Iterator[TopicError]:
        for name, since in covered_since(scope, self.watch.relay).items():
            if since is None:
                yield TopicError(
                    f"The relay does not publish the changes of {name} to the topic {self.watch.topic!r}.",
                    remedy="Start `dispatcher relay` with this application too.",
                )
            elif since > begins:
                published = token_time(since).as_datetime().isoformat()
                yield TopicError(
                    f"The relay publishes the changes of {name} to the topic {self.watch.topic!r} only since "
                    f"{published}, but this group has delivered the changes only until "
                    f"{token_time(begins).as_datetime().isoformat()}.",
                    remedy=f"Run the dispatchers of this group without the receivers of {name}, until they have "
                    f"delivered the changes up to {published}. Then start them with these receivers. Or let the "
                    "group read from change streams until that time: `dispatcher position switch`.",
                )

    async def first(self, parts: Mapping[int, Scope]) -> Mapping[int, FirstPosition]:
        """The relay's position: all later changes are in the topic."""
        first = {}
        for number in parts:
            look = self.watch.newest(number)
            offset, term, last, token = resume(BEGINNING, look.relay, look.beginning)
            first[number] = FirstPosition(token, place=LogPlace(look.topic_id, offset, term, last))
        return first
