"""`dispatcher setup` prepares a deployment. `dispatcher run` only checks it at each start, and warns."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError

from dispatcher.core.clients import Clients
from dispatcher.core.driver_errors import in_short
from dispatcher.core.oplog import look_at_oplog
from dispatcher.core.output.logs import log
from dispatcher.core.state import Group, State
from dispatcher.delivery.application import group_of, routes_of
from dispatcher.delivery.routes import Routes
from dispatcher.exceptions import AccessDenied, ServerError
from dispatcher.group.layout import admit, begin, divide_into, require_source
from dispatcher.group.origin import origin_of
from dispatcher.kafka.config import config_of
from dispatcher.kafka.relay_state import RelayStore
from dispatcher.kafka.topics import PARTITIONS, created_topic, read_topic
from dispatcher.operate.stream_load import REMEDY, stream_load
from dispatcher.position.store import PositionStore
from dispatcher.settings import Settings
from dispatcher.stream.change_stream import token_of_now
from dispatcher.stream.collections import WatchedCollection, watched_collections
from dispatcher.stream.scope import scope_of
from mongoz import Registry

_IMAGES: Final = {"changeStreamPreAndPostImages": {"enabled": True}}

_UNAUTHORIZED: Final = 13
_NAMESPACE_EXISTS: Final = 48

# Maximum seconds by which the checks for warnings delay a start.
_PATIENCE: Final = 5.0


def few_connections(clients: Clients, settings: Settings) -> tuple[str, str]:
    """The warning that receivers wait for connections, and its remedy."""
    text = (
        f"Up to {settings.concurrency} receivers run at the same time, and share "
        f"maxPoolSize={clients.connections} connections"
    )
    return text, "Raise maxPoolSize in the URL, or lower --concurrency to maxPoolSize."


@dataclass
class Prepared:
    """The result of `setup`.

    Attributes:
        images: the result for each collection: `"on already"`, `"turned on"`, `"created"`, or `"left alone: ..."`
            for a view or a time series that a pattern matches.
        state: the result for the state database: `"indexed"`.
        topic: the result for the topic: `"created with 32 partitions"`, or `"created already"`; empty without
            `--kafka`.
        position: `"recorded"`, `"recorded already"`, or `"waits for the first start of dispatcher relay"`.
    """

    address: str
    group: str
    images: dict[str, str] = field(default_factory=dict)
    state: str = ""
    topic: str = ""
    position: str = ""


async def set_up(
    registry: Registry, settings: Settings, application: str = "", *, images: bool = True
) -> Prepared:
    """Prepare a deployment for the dispatchers of a registry. A second call changes nothing.

    Args:
        registry: the registry of the application. Its receivers are connected already.
        application: the name of the application, see `admit`.
        images: whether to turn on pre and post images for the watched collections.

    Raises:
        DispatcherError: a step failed. The results of earlier steps stay.
    """
    group = group_of(registry, settings)
    clients = Clients(registry, settings)
    routes = routes_of(registry, settings, group)
    prepared = Prepared(clients.address, group)
    async with clients.patient_client() as client:
        await clients.check(client)
        state = State(client, settings.state_database, clients.address)
        store = PositionStore(Group(state, group))

        scope = scope_of(routes)

        async def prepare() -> None:
            origin = None
            if settings.kafka is None or await _prepare_topic(state, settings, prepared):
                origin = await origin_of(settings, state, partial(token_of_now, client, scope, clients.address))
            await admit(store, settings, application)
            if origin is not None:
                await require_source(store, origin, scope, settings)
            if images:
                for watched in await _listed(client, routes):
                    done = await _turn_images_on(client, watched)
                    prepared.images.setdefault(watched.name, done)
            await state.create_indexes()
            await state.keep_deliveries_for(settings.delivery_retention)
            await state.keep_claims_for(settings.delivery_retention)
            prepared.state = "indexed"
            if origin is None:
                prepared.position = "waits for the first start of dispatcher relay"
                return
            # The position is recorded after the images are turned on, so that all changes after it have images.
            recorded = await begin(store, origin, scope, settings, await store.load())
            prepared.position = "recorded" if recorded else "recorded already"
            await admit(store, settings, application)
            await divide_into(store, settings.partitions)

        await clients.patiently(prepare)
    return prepared


async def _prepare_topic(state: State, settings: Settings, prepared: Prepared) -> bool:
    """Create the topic, unless it exists or a relay has published to it. Returns whether a relay has published."""
    relay = await RelayStore(state, settings.kafka_topic).load()
    prepared.topic = "created already"
    if relay is None:
        admin, partitions = config_of(settings).admin(), settings.partitions or PARTITIONS
        if await read_topic(admin, settings.kafka_topic) is None:
            await created_topic(admin, settings.kafka_topic, partitions)
            prepared.topic = f"created with {partitions} partitions"
    return relay is not None


async def _listed(client: AsyncMongoClient[Any], routes: Routes) -> list[WatchedCollection]:
    try:
        return await watched_collections(client, scope_of(routes))
    except OperationFailure as error:
        if error.code != _UNAUTHORIZED:
            raise
        raise AccessDenied(
            f"The options of the collections can't be read: {_message_of(error)}",
            remedy="Grant listCollections on the databases of the documents (the roles read and dbAdmin have "
            "it), or leave images as they are with --no-images.",
        ) from error


async def _turn_images_on(client: AsyncMongoClient[Any], watched: WatchedCollection) -> str:
    """Turn on pre and post images for one collection, and return the result."""
    if watched.kind not in ("", "collection"):
        if not watched.is_named:
            return f"left alone: it is a {watched.kind}, and has no changes to deliver"
        raise ServerError(
            f"{watched.name} is a {watched.kind}, which has no changes to deliver.",
            remedy="Point Meta.collection and Meta.watch to plain collections, or disconnect the receivers.",
        )
    if watched.has_images:
        return "on already"
    database, collection = watched.namespace
    try:
        if not watched.kind and await _create(client, watched):
            return "created"
        await client[database].command({"collMod": collection, **_IMAGES})
    except OperationFailure as error:
        raise _refused(watched, error) from error
    return "turned on"


async def _create(client: AsyncMongoClient[Any], watched: WatchedCollection) -> bool:
    """Create a collection with images. Returns False if another client created it at the same time."""
    database, collection = watched.namespace
    try:
        await client[database].command({"create": collection, **_IMAGES})
    except OperationFailure as error:
        if error.code == _NAMESPACE_EXISTS:
            return False
        raise
    return True


def _refused(watched: WatchedCollection, error: OperationFailure) -> AccessDenied | ServerError:
    message = _message_of(error)
    if error.code == _UNAUTHORIZED:
        action = "collMod" if watched.kind else "createCollection"
        return AccessDenied(
            f"The images of {watched.name} can't be turned on: {message}",
            remedy=f"Grant {action} on {watched.name} (the role dbAdmin has it), let an administrator run setup, "
            "or leave images as they are with --no-images.",
        )
    return ServerError(
        f"The images of {watched.name} can't be turned on: {message}",
        remedy="Fix what the server reports, or leave images as they are with --no-images.",
    )


def _message_of(error: OperationFailure) -> str:
    """The server's message, without the command that it repeats."""
    text = str((error.details or {}).get("errmsg", error))
    return text.partition(" to execute command")[0].rstrip(".")


async def warn_about_collections(client: AsyncMongoClient[Any], routes: Routes, *, stamped: bool) -> None:
    """Log warnings about the watched collections. This function never raises, and takes at most a few seconds.

    Args:
        client: a client for the running loop.
        stamped: whether the ODM stamps writes to the collections.
    """
    try:
        async with asyncio.timeout(_PATIENCE):
            watched = await watched_collections(client, scope_of(routes))
            _warn_of_missing_images(watched, routes)
            if stamped:
                await _warn_of_validators(client, watched, routes.group)
    except (PyMongoError, TimeoutError) as error:
        log.info(
            "the options of the watched collections can't be read, so their images and validators are not checked",
            action="collections.not_checked",
            error=in_short(error),
        )


async def warn_about_streams(group: Group) -> None:
    """Log a warning if the change streams of all groups together load the server too much.

    This function never raises, and takes at most a few seconds.
    """
    try:
        async with asyncio.timeout(_PATIENCE):
            load = await stream_load(group, await look_at_oplog(group.state.client))
    except (PyMongoError, TimeoutError) as error:
        log.info(
            "the load by change streams can't be estimated", action="streams.not_checked", error=in_short(error)
        )
        return
    if load.is_high:
        log.warning(
            f"many change streams load the server: {load}",
            action="streams.many",
            streams=load.total,
            remedy=REMEDY,
        )


def _warn_of_missing_images(watched: Iterable[WatchedCollection], routes: Routes) -> None:
    """Warn about collections that have receivers of updates or deletes, but no images. Inserts need no images."""
    names = [
        one.name
        for one in watched
        if not one.has_images
        and one.kind in ("", "collection")
        and any(
            listener.receivers["post_update"] or listener.receivers["post_delete"]
            for listener in routes.listening_to(one.namespace)
        )
    ]
    if names:
        log.warning(
            "collections keep no images: updates are delivered with the current document, deletes with "
            "the id only",
            action="collections.without_images",
            collections=names,
            remedy="Run `dispatcher setup APP`.",
        )


async def _warn_of_validators(
    client: AsyncMongoClient[Any], watched: Iterable[WatchedCollection], group: str
) -> None:
    names = []
    for one in watched:
        with suppress(OperationFailure):  # the validator is too slow, or has a rare operator
            if await one.refuses_stamp(client, group):
                names.append(one.name)
    if names:
        log.warning(
            "validators refuse the field _mongoz, so the application's writes to these collections fail",
            action="collections.refuse_stamps",
            collections=names,
            remedy="add {_mongoz: {bsonType: 'binData'}} to the properties of the validator's $jsonSchema",
        )
