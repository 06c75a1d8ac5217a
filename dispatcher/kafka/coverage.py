"""Decides which of a dispatcher's collections a relay publishes, and since when. No I/O."""

from dispatcher.kafka.relay_state import RelayState
from dispatcher.stream.scope import Scope
from mongoz.connection.namespaces import parse_pattern


def covered_since(scope: Scope, relay: RelayState) -> dict[str, str | None]:
    """Maps each watched collection or pattern to a token: a relay publishes all its changes after this token.

    The token is None if the relay does not publish them.
    """
    since = relay.since
    patterns = [parse_pattern(name) for name in since if "*" in name]
    covering = {
        ".".join(one): [
            ".".join(one),
            *(str(pattern) for pattern in patterns if pattern.matches(*one, (scope.apart_from,))),
        ]
        for one in scope.namespaces
    }
    covering |= {str(pattern): [str(pattern)] for pattern in scope.patterns}
    return {name: _earliest([since[one] for one in some if one in since]) for name, some in covering.items()}


def interrupted(scope: Scope, before: RelayState, now: RelayState) -> list[str]:
    """The watched collections whose changes the relay may have left out since an earlier state of the relay."""
    return [
        name for name, token in covered_since(scope, now).items() if token is None or token > before.position.token
    ]


def _earliest(tokens: list[str]) -> str | None:
    return min(tokens, default=None)
