"""Connects a command to the state of a group."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, NamedTuple, TypeVar

import typer
from pymongo.errors import ConfigurationError, ConnectionFailure, PyMongoError

from dispatcher.cli.application import load_registry
from dispatcher.cli.options import GroupFlags, make_settings
from dispatcher.core.clients import client_of
from dispatcher.core.driver_errors import in_short, raise_if_fatal
from dispatcher.core.state import Group, State
from dispatcher.delivery.routes import Routes
from dispatcher.exceptions import ApplicationError, CannotConnect, NotFound, ServerError
from dispatcher.operate.status import groups_in
from mongoz.connection.address import first_seed
from mongoz.exceptions import ImproperlyConfigured
from mongoz.synonyms import nearest

_SELECTION_TIMEOUT_MS: Final = 5_000

_T = TypeVar("_T")


class GroupConnection(NamedTuple):
    """A connection to the state of a group of dispatchers.

    Attributes:
        receivers: present and former names of the application's receivers; empty without an application.
    """

    group: Group
    receivers: frozenset[str] = frozenset()


def with_group(use: Callable[[GroupConnection], Awaitable[_T]], place: GroupFlags, *, relays: bool = False) -> _T:
    """Connect to the state of a group, and call a function with the connection.

    Args:
        place: the flags that name the group. If they have no URL, the server of the application is used. If they
            have no group, the group of the application is used, or else the only group in the state.
        relays: whether the command is also for relays, which have no receivers.

    Raises:
        DispatcherError: there is no such group, or the server does not answer.
        typer.BadParameter: neither a server nor an application is named, or the group is a relay.
    """
    make_settings(url=place.url, state_database=place.state_database)
    receivers: frozenset[str] = frozenset()
    url, group = place.url, place.group
    if place.app is not None:
        registry = load_registry(place.app)
        receivers = Routes(registry.all_documents, registry.dispatched or "default").names
        url = url or registry.url
        group = group or registry.dispatched or "default"
        if url is None:
            raise ApplicationError(
                "The registry was made from a client, so its URL is unknown.", remedy="Name the server with --url."
            )
    if url is None:
        raise typer.BadParameter("Name the server with --url, or the application APP.", param_hint="--url")

    async def run() -> _T:
        async with _connected(url, place.state_database) as state:
            chosen = await _chosen(
                state, place.state_database, group, may_be_new=place.app is not None, relays=relays
            )
            return await use(GroupConnection(Group(state, chosen), receivers))

    return asyncio.run(run())


@asynccontextmanager
async def _connected(url: str, database: str) -> AsyncIterator[State]:
    try:
        seed = first_seed(url)
    except ImproperlyConfigured as error:
        raise CannotConnect(str(error), remedy="Fix --url or DISPATCHER_URL.") from error
    address = seed.host if seed.port is None else f"{seed.host}:{seed.port}"
    try:
        async with client_of(
            url,
            address,
            appname="mongoz-dispatcher-cli",
            serverSelectionTimeoutMS=_SELECTION_TIMEOUT_MS,
            tz_aware=True,
        ) as client:
            yield State(client, database, address)
    except PyMongoError as error:
        raise_if_fatal(error, address)
        if isinstance(error, ConnectionFailure | ConfigurationError):
            raise CannotConnect(
                f"No MongoDB server answers at {address}: {in_short(error)}",
                remedy="Is it running, is the URL right, and may this machine reach it?",
            ) from error
        raise ServerError(
            f"{address} refuses the request: {in_short(error)}", remedy="See the server's log."
        ) from error


async def _chosen(state: State, database: str, group: str | None, *, may_be_new: bool, relays: bool) -> str:
    """The named group; without a name, the only group in the state, or else the only relay.

    Args:
        may_be_new: whether the named group may have no state yet.
        relays: whether the command is also for relays.
    """
    there_are = await groups_in(state)
    groups = [name for name, is_relay in there_are.items() if not is_relay]
    if group is not None and (group in there_are or may_be_new):
        if there_are.get(group) and not relays:
            raise _no_receivers(group, groups)
        return group
    place = f"{state.address}, database {database}"
    if not there_are:
        raise NotFound(
            f"There is no state of dispatchers at {place}.",
            remedy="Name the right server with --url and the right database with --state-database. A group has a "
            "state after its first `dispatcher run` or `dispatcher setup`.",
        )
    if group is not None:
        raise NotFound(
            f"There is no group {group!r} of dispatchers at {place}.{nearest(group, list(there_are))}",
            remedy="The registry names its group with dispatched=; True means 'default'. A relay has the name of "
            "its topic.",
        )
    candidates = groups or list(there_are)
    if len(candidates) > 1:
        names = ", ".join(candidates)
        raise typer.BadParameter(f"There are several groups: {names}. Name one.", param_hint="--group")
    if not groups and not relays:
        raise _no_receivers(candidates[0], groups)
    return candidates[0]


def _no_receivers(relay: str, groups: list[str]) -> typer.BadParameter:
    """The error for a command that needs receivers, but gets a relay."""
    names = f"Name a group of dispatchers: {', '.join(groups)}." if groups else "There is no group of dispatchers."
    return typer.BadParameter(
        f"{relay!r} is a relay. It has no receivers, so this command has nothing to do there. {names}",
        param_hint="--group",
    )
