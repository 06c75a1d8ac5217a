"""Sets up a group: the application that it belongs to, its partitions, and their first positions.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from dispatcher.core.output.logs import log
from dispatcher.exceptions import GroupTaken, PositionError
from dispatcher.group.origin import ChangeOrigin
from dispatcher.group.processes import partitions_for, process_count
from dispatcher.position.documents import Layout, SavedPositions
from dispatcher.position.store import PositionStore
from dispatcher.settings import Settings
from dispatcher.stream.scope import Scope


async def admit(store: PositionStore, settings: Settings, application: str) -> None:
    """Require that a group belongs to this application.

    A group without an application is assigned to this application.

    Args:
        settings: the settings of the dispatcher. With `adopt`, a group that belongs to another application is
            assigned to this one.
        application: the name of this application, `"package.module:registry"`; empty to require nothing.

    Raises:
        GroupTaken: the group belongs to another application, and `adopt` is not set.
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


async def require_source(store: PositionStore, origin: ChangeOrigin, scope: Scope, settings: Settings) -> None:
    """Require that a group has this source. A new group may have any source.

    Raises:
        PositionError: the group has another source, or another number of partitions than the topic.
        TopicError: the relay does not publish a watched collection, or began to publish it after the position.
    """
    saved = await store.load()
    origin.require_covered(scope, saved)
    require_same_source(store.group, saved, origin, settings)


def require_same_source(group: str, saved: SavedPositions, origin: ChangeOrigin, settings: Settings) -> None:
    """Require that a group reads from this source already, or is new.

    Raises:
        PositionError: the group has another source, or another number of partitions than the topic.
    """
    wanted = settings.partitions
    if origin.partitions is not None and wanted not in (None, origin.partitions):
        raise PositionError(
            f"--partitions is {wanted}, but {origin.topic} has {origin.partitions} partitions.",
            remedy="Leave --partitions out: the topic decides the number.",
        )
    layout = saved.layout
    if layout is None and (origin.topic is None or not saved.positions):
        return
    known = Layout(max(saved.positions) + 1, None, "") if layout is None else layout
    if known.topic != origin.topic:
        raise _other_source(group, known, origin)
    if origin.partitions is not None and known.partitions != origin.partitions:
        raise PositionError(
            f"The group {group!r} has {known.partitions} partitions, but {origin.topic} has "
            f"{origin.partitions}: changes would be lost, or delivered twice.",
            remedy="The number of partitions of a topic can't be changed. Was the topic created again, or was the "
            "layout edited by hand? Create the topic with the earlier number, or choose another --kafka-topic.",
        )


def _other_source(group: str, known: Layout, origin: ChangeOrigin) -> PositionError:
    before = "change streams" if known.topic is None else str(known.topic)
    now = "change streams" if origin.topic is None else str(origin.topic)
    fix = "Leave --kafka out"
    if known.topic is not None:
        fix = f"Start with --kafka-topic {known.topic.name} and the --kafka of that cluster"
    return PositionError(
        f"The group {group!r} reads from {before}, and this dispatcher reads from {now}: changes would be lost, "
        "or delivered twice.",
        remedy=f"{fix}. Or stop all dispatchers of the group, and switch it with `dispatcher position switch`.",
    )


async def divide_into(store: PositionStore, partitions: int | None) -> None:
    """Request another number of partitions.

    First the members give up all their partitions. Then they divide the work into this number of partitions.

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
    store: PositionStore, origin: ChangeOrigin, scope: Scope, settings: Settings, saved: SavedPositions
) -> bool:
    """Record the missing positions. A partition without a position begins at the present end of its source.

    Returns:
        Whether this call has recorded a missing position.

    Raises:
        TooManyProcesses: the group is new, and the operator must choose its number of partitions.
    """
    if saved.layout is not None:
        partitions = saved.layout.partitions
    elif origin.partitions is not None:
        partitions = origin.partitions
    elif saved.positions:
        partitions = max(saved.positions) + 1
    else:
        partitions = settings.partitions or partitions_for(process_count(settings.processes), store.group)
    there = {number for number, one in saved.positions.items() if one.token is not None}
    missing = [number for number in range(partitions) if number not in there]
    if saved.layout is not None and not missing:
        return False
    parts = {number: scope.part(number, partitions) for number in missing}
    first = await origin.first(parts) if missing else {}
    begun = await store.begin(partitions, first, new=saved.layout is None, topic=origin.topic)
    return begun and bool(missing)
