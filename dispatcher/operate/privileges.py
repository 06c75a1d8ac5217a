"""The privileges that the database user of a dispatcher needs, and the privileges that it has.

`run` and `relay` require the privileges in the first two lines of the next list. Without the privileges in the
other lines, some metrics and warnings are absent. `run --kafka` does not require changeStream, but without
changeStream the dispatcher can't read the changes that the topic has lost.

    changeStream, find      on the watched database, or on the whole deployment if several databases are watched
    readWrite               on the database of the dispatcher's state
    serverStatus            on the deployment: how far back the oplog reaches
    collStats               on local.oplog.rs: how full the oplog is (collStats does not show its entries)
    listCollections         on the databases of the documents: whether collections keep images
    hostInfo                on the deployment: how many change streams its CPU can run; not with `--kafka`
    getClusterParameter     on the deployment: how long images are kept

To claim receivers (see `mongoz/claims/beats.py`), the user of the application needs in the state database:

    find                    on positions and members: whether all dispatchers take claims over
    insert, update          on claims

MongoDB commands raise the `PyMongoError` of the driver.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from pymongo import AsyncMongoClient

from dispatcher.core.state import CLAIMS, CONTROLS, MEMBERS, POSITIONS, WRITTEN, State
from dispatcher.exceptions import AccessDenied
from dispatcher.stream.scope import Scope

_WRITE: Final = ("find", "insert", "update", "remove")
_STATE: Final = (*_WRITE, "createCollection", "createIndex")


class Right(NamedTuple):
    """Actions on a resource.

    Attributes:
        database: the database of the resource; "" means every database except local and config, None means the
            deployment.
        collection: the collection of the resource; "" means every collection of the database.
        why: the purpose of the actions, for people.
    """

    database: str | None
    collection: str
    actions: tuple[str, ...]
    why: str

    @property
    def resource(self) -> dict[str, Any]:
        """The resource in the form of the server."""
        if self.database is None:
            return {"cluster": True}
        return {"db": self.database, "collection": self.collection}

    def __str__(self) -> str:
        place = "the deployment"
        if self.database is not None:
            place = json.dumps(self.resource)
        return f"{', '.join(self.actions)} on {place} ({self.why})"


def needed(scope: Scope, state_database: str, *, streams: bool = True) -> list[Right]:
    """The required privileges. Without them nothing is delivered.

    Args:
        streams: whether the changes come from change streams, and not from a topic.
    """
    place = scope.database or ""
    reading = Right(place, "", ("changeStream", "find"), "to read changes")
    if not streams:
        reading = Right(place, "", ("find",), "to read documents that a change does not contain")
    return [reading, Right(state_database, "", _STATE, "to keep positions and dead letters")]


def useful_to_run(scope: Scope, *, streams: bool) -> list[Right]:
    """The optional privileges of a dispatcher. `streams` has the same meaning as in `needed`."""
    changes = Right(scope.database or "", "", ("changeStream",), "to read changes that a topic has lost")
    cores = Right(None, "", ("hostInfo",), "to tell how many change streams its CPU can run")
    return [cores if streams else changes, *useful(scope)]


def useful(scope: Scope) -> list[Right]:
    """The optional privileges. Without them a warning is not given, or a metric is absent."""
    databases = sorted({database for database, _ in scope.namespaces})
    return [
        Right(None, "", ("serverStatus",), "to tell how far back the oplog reaches"),
        Right("local", "oplog.rs", ("collStats",), "to tell how full the oplog is"),
        *(Right(name, "", ("listCollections",), "to tell whether collections keep images") for name in databases),
        Right(None, "", ("getClusterParameter",), "to tell how long images are kept"),
    ]


def needed_to_claim(state_database: str) -> list[Right]:
    """The privileges of the application. Without them, the application can write, but it claims nothing."""
    return [
        Right(state_database, POSITIONS, ("find",), "to know whether dispatchers take claims over"),
        Right(state_database, MEMBERS, ("find",), "to know whether all dispatchers take claims over"),
        Right(state_database, CLAIMS, ("insert", "update"), "to record claims"),
    ]


async def missing(client: AsyncMongoClient[Any], rights: Iterable[Right]) -> list[Right]:
    """The privileges that the user lacks. Each contains only the missing actions."""
    answer = await client.admin.command("connectionStatus", showPrivileges=True)
    info = answer["authInfo"]
    if not info["authenticatedUsers"]:
        return []  # without a user: the server has no access control, or it refuses the next command
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


async def require_state(state: State) -> None:
    """Require the privileges on all collections of the state."""
    database = state.name
    written = [Right(database, collection, _WRITE, "") for collection in WRITTEN]
    lacking = await missing(state.client, [*written, Right(database, CONTROLS, ("find",), "")])
    if lacking:
        actions = ", ".join(dict.fromkeys(action for right in lacking for action in right.actions))
        places = ", ".join(f"{database}.{right.collection}" for right in lacking)
        raise AccessDenied(
            f"The state can't be kept: the user may not {actions} in {places}.",
            remedy=f"Grant readWrite on the database {database}, or choose another one with --state-database.",
        )


def _covers(resource: Mapping[str, Any], right: Right) -> bool:
    """Returns whether a granted resource contains the resource of a privilege."""
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
    """The name of the role for the dispatchers of a group."""
    return f"mongoz_dispatcher_{group}"


def application_role_name(group: str) -> str:
    """The name of the role for the application of a group."""
    return f"mongoz_application_{group}"


def create_role(group: str, scope: Scope, rights: Sequence[Right], state_database: str) -> str:
    """The command for mongosh that creates a role with the least privileges.

    The command has comments, which list the data that the role can read.

    Args:
        rights: all required and optional privileges. The command does not list those on the state database,
            because the role gets `readWrite` on it.
        state_database: the database of the dispatcher's state.
    """
    others = [right for right in rights if right.database != state_database]
    state = [{"role": "readWrite", "db": state_database}]
    return _command(role_name(group), others, state, _readable(scope, state_database))


def create_application_role(group: str, state_database: str) -> str:
    """The command for mongosh that creates a further role, for the user of the application."""
    comments = [
        "This role is for the application. With it, dispatchers can take over the receivers of dead processes.",
        "The user of the application also needs readWrite on the databases of its documents.",
    ]
    return _command(application_role_name(group), needed_to_claim(state_database), [], comments)


def _command(name: str, rights: Iterable[Right], roles: list[dict[str, str]], comments: Iterable[str]) -> str:
    privileges = [{"resource": right.resource, "actions": list(right.actions)} for right in rights]
    role = json.dumps({"role": name, "privileges": privileges, "roles": roles}, indent=2)
    return "".join(f"// {line}\n" for line in comments) + f'db.getSiblingDB("admin").createRole({role})'


def _readable(scope: Scope, state_database: str) -> list[str]:
    """The lines of a comment that tells an administrator which data the role can read."""
    if scope.database is not None:
        return [
            f"This role can read every collection of the database {json.dumps(scope.database)}, "
            "and the changes in them:",
            "a change stream on a database needs changeStream and find on all of it.",
            f"It can read and write the database {json.dumps(state_database)}.",
        ]
    databases = {name for name, _ in scope.namespaces} | {one.database for one in scope.patterns}
    return [
        "WARNING: this role can read every collection of every database except local and config,",
        "and the changes in them. The documents live in several databases",
        f"({', '.join(map(json.dumps, sorted(databases)))}), so one change stream watches the whole deployment,",
        "which needs changeStream and find on all of it. To grant less, keep the documents in one database,",
        "or give each database a registry and a group of its own.",
        f"It can read and write the database {json.dumps(state_database)}.",
    ]
