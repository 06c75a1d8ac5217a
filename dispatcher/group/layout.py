"""The beginning: what a group knows of the application that it belongs to, and where its partitions begin."""

from collections.abc import Callable, Coroutine
from typing import Any

from dispatcher.core.output.logs import get_logger
from dispatcher.exceptions import GroupTaken
from dispatcher.position.documents import SavedPositions
from dispatcher.position.store import PositionStore
from dispatcher.settings import Settings
from dispatcher.stream.scope import Scope

__all__ = ["admit", "begin", "divide_into", "taken"]

log = get_logger()


async def admit(store: PositionStore, settings: Settings, application: str) -> None:
    """Look whether a group is the one of this application; if it belongs to none yet, it does from now on.

    Args:
        store: of the group.
        settings: the operator's, who may say that the application has another name now.
        application: as it was named: `"package.module:registry"`. Without a name it is not asked for.

    Raises:
        GroupTaken: the group is another application's.
        PositionError: what is saved makes no sense.
        PyMongoError: as the driver has it.
    """
    while application and (layout := (await store.load()).layout) is not None:
        before = layout.application
        if before == application:
            return
        if before and not settings.adopt:
            raise taken(store.group, before, application)
        if await store.rename_application(before, application) and before:
            log.warning(
                "the application of this group has another name from now on",
                action="group.adopted",
                group=store.group,
                before=before,
                application=application,
            )


def taken(group: str, before: str, application: str) -> GroupTaken:
    """What to say of a group that is another application's.

    Args:
        group: of dispatchers.
        before: whose it is.
        application: which wants it.
    """
    return GroupTaken(
        f"The group {group!r} belongs to the application {before!r}, and this is {application!r}: they would take "
        "changes away from each other.",
        remedy="Give each a group of its own with Registry(..., dispatched='name'). If this is the same "
        "application, renamed, start it once with --adopt.",
    )


async def divide_into(store: PositionStore, partitions: int | None) -> None:
    """Have the work divided into another number of partitions, as soon as its members have handed it over.

    Args:
        store: of the group.
        partitions: how many there should be; None leaves it as it is.

    Raises:
        PositionError: what is saved makes no sense.
        PyMongoError: as the driver has it.
    """
    while partitions is not None and (saved := await store.load()).layout is not None:
        if (saved.layout.wanted or saved.layout.partitions) == partitions:
            return
        if await store.want(saved, partitions):
            log.info(
                "the work of this group is going to be divided anew",
                action="layout.wanted",
                before=saved.layout.partitions,
                partitions=partitions,
            )


async def begin(
    store: PositionStore,
    scope: Scope,
    now: Callable[[], Coroutine[Any, Any, str]],
    settings: Settings,
    saved: SavedPositions,
) -> bool:
    """Record the positions that are missing: these partitions begin now.

    Args:
        store: where they belong.
        scope: what is watched.
        now: gives a token of this moment.
        settings: the operator's.
        saved: what is there.

    Returns:
        Whether any was missing.

    Raises:
        PyMongoError: as the driver has it.
    """
    if saved.layout is not None:
        partitions = saved.layout.partitions
    else:
        partitions = max(saved.positions, default=(settings.partitions or 1) - 1) + 1
    there = {number for number, one in saved.positions.items() if one.token is not None}
    missing = [number for number in range(partitions) if number not in there]
    if saved.layout is not None and not missing:
        return False
    token = await now() if missing else ""
    first = {number: (token, scope.part(number, partitions).fingerprint) for number in missing}
    return await store.begin(partitions, first, new=saved.layout is None) and bool(missing)
