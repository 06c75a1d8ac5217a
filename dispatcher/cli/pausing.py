"""`dispatcher pause` and `dispatcher resume`."""

import getpass
import socket
from typing import TYPE_CHECKING, Annotated

import typer

from dispatcher.cli.options import Json, OfGroup
from dispatcher.cli.output import out, print_json
from dispatcher.core.output.terminal import shown

if TYPE_CHECKING:
    from dispatcher.cli.connecting import GroupConnection
    from dispatcher.operate.status_model import Pause, SourceStatus

ReceiverName = Annotated[
    str | None,
    typer.Argument(
        metavar="RECEIVER",
        help="The receiver's name in `dispatcher receivers APP`. Without a name, the command applies to "
        "everything.",
    ),
]


def pause(
    receiver: ReceiverName = None,
    *,
    place: OfGroup,
    as_json: Json = False,
) -> None:
    """Pause a receiver of a group, or everything.

    The deliveries of a paused receiver wait in MongoDB, in order, and do not delay the deliveries to other
    receivers. After `resume` the waiting deliveries are made. Without RECEIVER everything pauses: nothing is read,
    and the position stays where it is. Nothing is lost if you resume while the oplog, or the topic, still holds
    the position; `status` shows how long that will be. A pause applies to running dispatchers within some seconds,
    and to dispatchers that start later.

    Example: `dispatcher pause billing.welcome --url mongodb://db.example.org`
    """
    from dispatcher.cli.connecting import with_group
    from dispatcher.operate import pauses
    from dispatcher.operate.status import source_of

    async def do(there: "GroupConnection") -> "tuple[bool, SourceStatus]":
        changed = await pauses.pause(there.group, receiver, by=_operator(), known=there.receivers)
        return changed, await source_of(there.group)

    changed, source = with_group(do, place)
    if as_json:
        print_json({"receiver": receiver, "changed": changed})
        return
    text = f"{receiver or 'everything'} {'is paused' if changed else 'was paused already'}"
    if receiver is None and source.topic is not None:
        text = f"{text}; changes wait in {source}"
    out.print(shown(text))


def resume(
    receiver: ReceiverName = None,
    *,
    place: OfGroup,
    as_json: Json = False,
) -> None:
    """End the pause of a receiver of a group, or the pause of everything.

    The waiting deliveries are made before new ones, in order. Without RECEIVER the pause of everything ends.
    Receivers that are paused by name stay paused.

    Example: `dispatcher resume billing.welcome --url mongodb://db.example.org`
    """
    from dispatcher.cli.connecting import with_group
    from dispatcher.operate import pauses
    from dispatcher.operate.status import source_of

    async def do(there: "GroupConnection") -> "tuple[bool, list[Pause], SourceStatus]":
        changed = await pauses.resume(there.group, receiver, known=there.receivers)
        return changed, await pauses.pauses(there.group), await source_of(there.group)

    changed, left, source = with_group(do, place)
    names = [one.receiver or "everything" for one in left]
    if as_json:
        print_json({"receiver": receiver, "changed": changed, "still_paused": names})
        return
    if receiver is None:
        text = "the pause of everything has ended" if changed else "there was no pause of everything"
        if changed and source.topic is not None:
            text = f"{text}; the dispatchers read on from {source}"
    else:
        text = f"{receiver} {'is resumed' if changed else 'was not paused'}"
    out.print(shown(text))
    if names:
        out.print(shown(f"still paused: {', '.join(names)}"))


def _operator() -> str:
    """User and host, for people."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user often has no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
