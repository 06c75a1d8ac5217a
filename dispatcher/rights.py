"""What a database user of the dispatcher must be allowed to do, and what it is.

`run` needs the first two; the others are for things that it does without where they are missing.

    changeStream, find      on the watched database, or on the whole deployment where documents live in several
    readWrite               on the database of the dispatcher's state
    find, collStats         on local.oplog.rs: how far back the oplog reaches
    listCollections         on the databases of the documents: whether collections keep images
    getClusterParameter     on the deployment: how long images are kept
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from pymongo import AsyncMongoClient

from dispatcher.exceptions import AccessDenied
from dispatcher.routing import Routes
from dispatcher.source import Scope
from dispatcher.state import CONTROLS, WRITTEN

__all__ = ["Right", "create_role", "missing", "needed", "require_state", "role_name", "useful"]

_WRITE: Final = ("find", "insert", "update", "remove")
_STATE: Final = (*_WRITE, "createCollection", "createIndex")


class Right(NamedTuple):
    """Something to be allowed to do.

    Attributes:
        database: where; "" stands for every one. None means the deployment itself.
        collection: likewise.
        actions: the server's names.
        why: what it is for, in a few words.
    """

    database: str | None
    collection: str
    actions: tuple[str, ...]
    why: str

    @property
    def resource(self) -> dict[str, Any]:
        """As the server writes it."""
        if self.database is None:
            return {"cluster": True}
        return {"db": self.database, "collection": self.collection}

    def __str__(self) -> str:
        place = "the deployment"
        if self.database is not None:
            place = json.dumps(self.resource)
        return f"{', '.join(self.actions)} on {place} ({self.why})"


def needed(scope: Scope, state_database: str) -> list[Right]:
    """Without these nothing is delivered.

    Args:
        scope: what is watched.
        state_database: of the dispatcher.
    """
    return [
        Right(scope.database or "", "", ("changeStream", "find"), "to read changes"),
        Right(state_database, "", _STATE, "to keep positions and dead letters"),
    ]


def useful(routes: Routes) -> list[Right]:
    """Without these something is not known: a warning is not given, or a metric is absent."""
    databases = sorted({database for database, _ in routes.namespaces})
    return [
        Right("local", "oplog.rs", ("find", "collStats"), "to tell how far back the oplog reaches"),
        *(Right(name, "", ("listCollections",), "to tell whether collections keep images") for name in databases),
        Right(None, "", ("getClusterParameter",), "to tell how long images are kept"),
    ]


async def missing(client: AsyncMongoClient[Any], rights: Iterable[Right]) -> list[Right]:
    """Those of some rights that the user does not have, reduced to the actions that are missing.

    Raises:
        PyMongoError: as the driver has it.
    """
    answer = await client.admin.command("connectionStatus", showPrivileges=True)
    info = answer["authInfo"]
    if not info["authenticatedUsers"]:
        return []  # without a user either everything is allowed, or we would not have come so far
    privileges = info["authenticatedUserPrivileges"]
    lacking = []
    for right in rights:
        granted = {
            action
            for privilege in privileges
            if _covers(privilege["resource"], right)
            for action in privilege["actions"]
        }
        actions = () if "anyAction" in granted else tuple(a for a in right.actions if a not in granted)
        if actions:
            lacking.append(right._replace(actions=actions))
    return lacking


async def require_state(client: AsyncMongoClient[Any], database: str) -> None:
    """Look whether the state can be kept, in all of its collections.

    Args:
        client: opened for the running loop.
        database: of the dispatcher's state.

    Raises:
        AccessDenied: it can't; names what is missing.
        PyMongoError: as the driver has it.
    """
    written = [Right(database, collection, _WRITE, "") for collection in WRITTEN]
    lacking = await missing(client, [*written, Right(database, CONTROLS, ("find",), "")])
    if lacking:
        actions = ", ".join(dict.fromkeys(action for right in lacking for action in right.actions))
        places = ", ".join(f"{database}.{right.collection}" for right in lacking)
        raise AccessDenied(
            f"The state can't be kept: the user may not {actions} in {places}.",
            remedy=f"Grant readWrite on the database {database}, or name another one with --state-database.",
        )


def _covers(resource: Mapping[str, Any], right: Right) -> bool:
    """Whether what is granted on a resource is granted where the right is about."""
    if resource.get("anyResource"):
        return True
    if right.database is None:
        return bool(resource.get("cluster"))
    if "db" not in resource:
        return False
    database, collection = resource["db"], resource["collection"]
    # {db: "", collection: ""} means all databases but local and config.
    everywhere = not database and right.database not in ("local", "config")
    return (database == right.database or everywhere) and collection in ("", right.collection)


def role_name(group: str) -> str:
    """What a role for the dispatchers of a group is called here."""
    return f"mongoz_dispatcher_{group}"


def create_role(group: str, rights: Sequence[Right], state_database: str) -> str:
    """The command for mongosh that makes a role with the least that is needed.

    Args:
        group: of dispatchers.
        rights: all but those on the state.
        state_database: of the dispatcher, on which it gets `readWrite`.
    """
    privileges = [
        {"resource": right.resource, "actions": list(right.actions)}
        for right in rights
        if right.database != state_database
    ]
    role = {
        "role": role_name(group),
        "privileges": privileges,
        "roles": [{"role": "readWrite", "db": state_database}],
    }
    return f'db.getSiblingDB("admin").createRole({json.dumps(role, indent=2)})'
