"""Sets up a group: the application that it belongs to, its partitions, and their first positions.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from dispatcher.core.output.logs import log
from dispatcher.exceptions import GroupTaken
from dispatcher.group.processes import partitions_for, process_count
from dispatcher.position.documents import SavedPositions
from dispatcher.position.store import PositionStore
from dispatcher.settings import Settings
from dispatcher.stream.scope import Scope


async def admit(store: PositionStore, settings: Settings, application: str) -> None:
    """Require that a group belongs to this application.

    A group without an application is assigned to this application.

    Args:
        settings: of the dispatcher; `adopt` accepts another name of the application.
        application: its name, `"package.module:registry"`; empty to require nothing.

    Raises:
        GroupTaken: the group belongs to another application.
        PositionError: a saved document is malformed.
    """
    while application and (layout := (await store.load()).layout) is not None:
        before = layout.application
        if before == application:
            return
        if before and not settings.adopt:
            raise taken(store.group, before, application)
        if await store.rename_application(before, application) and before:
            log.warning(
                "the group belongs to this application from now on",
                action="group.adopted",
                group=store.group,
                before=before,
                application=application,
            )


def taken(group: str, before: str, application: str) -> GroupTaken:
    """The error about a group that belongs to another application."""
    return GroupTaken(
        f"The group {group!r} belongs to the application {before!r}, and this application is {application!r}. In "
        "one group, each application would miss the changes that the other application gets.",
        remedy="Give each application a group of its own with Registry(..., dispatched='name'). If this is the "
        "same application under a new name, start it once with --adopt.",
    )


async def divide_into(store: PositionStore, partitions: int | None) -> None:
    """Request another number of partitions.

    After the members have handed over all partitions, they divide the work into this number.

    Args:
        partitions: the requested number; None keeps the present number.
    """
    while partitions is not None and (saved := await store.load()).layout is not None:
        if (saved.layout.wanted or saved.layout.partitions) == partitions:
            return
        if await store.request(saved, partitions):
            log.info(
                "another number of partitions is requested; the members hand over their partitions",
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
    """Record the missing positions: the partitions without a position begin at the present time.

    Args:
        now: returns a token of this moment.

    Returns:
        Whether this call has recorded a missing position.

    Raises:
        TooManyProcesses: the group is new, and the operator must choose its number of partitions.
    """
    if saved.layout is not None:
        partitions = saved.layout.partitions
    elif saved.positions:
        partitions = max(saved.positions) + 1
    else:
        partitions = settings.partitions or partitions_for(process_count(settings.processes), store.group)
    there = {number for number, one in saved.positions.items() if one.token is not None}
    missing = [number for number in range(partitions) if number not in there]
    if saved.layout is not None and not missing:
        return False
    token = await now() if missing else ""
    first = {number: (token, scope.part(number, partitions).fingerprint) for number in missing}
    return await store.begin(partitions, first, new=saved.layout is None) and bool(missing)
