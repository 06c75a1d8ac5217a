"""`Meta.watch`: its patterns, their scope, and the receivers of a namespace."""

import re
from typing import Any

import pytest
from bson import ObjectId, Regex, Timestamp
from pymongo.errors import BulkWriteError, DuplicateKeyError, OperationFailure, WriteError

import mongoz
from dispatcher.core.events import Change, Namespace
from dispatcher.delivery import routes as routes_module
from dispatcher.delivery.routes import Routes
from dispatcher.stream.scope import Scope
from mongoz.connection.namespaces import NamespacePattern, WatchedNamespaces, parse_pattern
from mongoz.exceptions import ImproperlyConfigured
from mongoz.persistence.outcome.refusals import explain_refusal
from mongoz.persistence.watched import is_watched, require_watched
from mongoz.signals import muted

URL = "mongodb://nowhere.invalid"


def define(registry: Any = None, *parents: type, name: str = "User", **options: Any) -> Any:
    body: dict[str, Any] = {"__annotations__": {"name": str}, "name": mongoz.String(), "__module__": __name__}
    where = {} if registry is None else {"registry": registry, "database": "shop"}
    body["Meta"] = type("Meta", (), {**where, **options})
    return type(mongoz.Document)(name, parents or (mongoz.Document,), body)


@pytest.fixture
def registry() -> mongoz.Registry:
    return mongoz.Registry(URL, dispatched="billing")


@pytest.mark.parametrize(
    ("text", "matching", "others"),
    [
        ("archive.users", ["archive.users"], ["archive.users2", "archiv.users", "archive.users.old"]),
        ("archive.users.old", ["archive.users.old"], ["archive.users"]),
        (
            "tenant_*.users",
            ["tenant_1.users", "tenant_.users"],
            ["tenant.users", "atenant_1.users", "tenant_1.u"],
        ),
        ("tenant_*", ["tenant_1.people", "tenant_x-y.people"], ["tenant_1.users"]),
        ("shop.users_*", ["shop.users_1", "shop.users_a.b", "shop.users_"], ["shop.users", "shop2.users_1"]),
        ("*.*", ["a.b", "a.b.c"], ["a.system.views", "admin.x", "config.x", "local.oplog.rs", "state.positions"]),
        ("s*.*", ["shop.b"], ["state.positions"]),
        ("state.*", ["state.positions"], ["state.system.js"]),
        ("a+b.u(x)*", ["a+b.u(x)1"], ["aab.ux1", "a+b.ux1"]),
        ("*_eu.[u]", ["x_eu.[u]"], ["x_eu.u"]),
        ("Ünï*.ß*", ["Ünïx.ßx"], ["Unix.ss"]),
    ],
)
def test_a_pattern_matches_exactly_its_namespaces(text: str, matching: list[str], others: list[str]) -> None:
    pattern = parse_pattern(text).within("people")
    for namespace in matching + others:
        database, _, collection = namespace.partition(".")
        assert pattern.matches(database, collection, ("state",)) is (namespace in matching), namespace
    assert pattern.is_literal is ("*" not in text)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (5, "is no string"),
        ("", "names no database"),
        (".users", "names no database"),
        ("shop.", "names no collection"),
        ("sh op.users", "' '"),
        ("shop/x.users", "'/'"),
        ("shop.us$ers", r"'\$'"),
        ("shop.a\0b", "MongoDB does not allow"),
        ("shop..users", "begins or ends with a dot"),
        ("shop.users.", "begins or ends with a dot"),
        ("shop.system.views", "server's own collections"),
        ("admin.users", "server's own database 'admin'"),
        ("local", "server's own database 'local'"),
        ("d" * 64, "longer than 63 bytes"),
        ("shop." + "c" * 251, "longer than 255 bytes"),
    ],
)
def test_an_invalid_pattern_is_an_error_when_the_class_is_defined(entry: Any, says: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=says) as caught:
        define(watch=["archive.users", entry])
    assert repr(entry) in str(caught.value)
    assert "Meta.watch of User" in str(caught.value)
    assert "Write 'database.collection'" in str(caught.value)


def test_watch_is_inherited_from_abstract_parents(registry: mongoz.Registry) -> None:
    base = define(registry, name="Base", abstract=True, watch=["tenant_*", "archive.all"])
    mixin = define(name="Mixin", abstract=True)
    user = define(None, mixin, base)
    assert base.meta.watch == user.meta.watch == ("tenant_*", "archive.all")
    # A bare database means the collection of the inheriting class.
    assert user.meta.watched.covers("tenant_1", "users")
    assert not user.meta.watched.covers("tenant_1", "admins")
    assert define(None, base, name="Admin").meta.watched.covers("tenant_1", "admins")
    assert define(None, base, watch=[]).meta.watch == ()
    concrete = define(registry, name="Parent", watch=("archive.parents",))
    assert define(registry, concrete, name="Child").meta.watch == ()
    assert define(registry).meta.watch == ()
    assert define(None, base, watch=["x.y"]).meta.watch == ("x.y",)


def test_cached_namespaces_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mongoz.connection.namespaces._MAX_CACHED", 10)
    watch = WatchedNamespaces([parse_pattern("t_*")], "users")
    for number in range(25):
        assert watch.covers(f"t_{number}", "users")
        assert not watch.covers(f"t_{number}", "others")
        assert len(watch._cached) <= 10


# -- writes ------------------------------------------------------------------------------------------


def listening(document: Any, *, signal: str = "post_save", delivery: Any = "dispatcher") -> Any:
    async def send_mail(sender: Any, **kwargs: Any) -> None: ...

    post = getattr(document.meta.signals, signal)
    post.connect(send_mail, name="send_mail", delivery=delivery)
    return post


def test_a_write_outside_of_the_watched_namespaces_is_refused(registry: mongoz.Registry) -> None:
    user = define(registry, watch=["tenant_*"])
    post = listening(user)
    other = registry.get_database("elsewhere").get_collection("users")
    with pytest.raises(ImproperlyConfigured) as caught:
        require_watched(user, other, post)
    for part in ("User", "'elsewhere.users'", "post_save", "'send_mail'", "'shop.users'", "'tenant_*.users'"):
        assert part in str(caught.value)
    assert "to Meta.watch" in str(caught.value)
    own = registry.get_database("shop").get_collection("users")
    for collection in (user.meta.collection, own, registry.get_database("tenant_7").get_collection("users")):
        require_watched(user, collection, post)
        assert is_watched(user, collection)
    # This signal has no dispatched receiver.
    require_watched(user, other, user.meta.signals.post_delete)


def test_writes_without_dispatched_receivers_need_no_watch(registry: mongoz.Registry) -> None:
    other = registry.get_database("elsewhere").get_collection("users")
    in_process = define(registry)
    require_watched(in_process, other, listening(in_process, delivery="any"))
    user = define(registry, name="Customer")
    post = listening(user)
    with muted():
        require_watched(user, other, post)
    with pytest.raises(ImproperlyConfigured):
        require_watched(user, other, post)
    plain = define(mongoz.Registry(URL))
    require_watched(plain, other, listening(plain))


def test_partial_instances_are_refused_like_their_document(registry: mongoz.Registry) -> None:
    user = define(registry)
    post = listening(user)
    other = registry.get_database("elsewhere").get_collection("users")
    with pytest.raises(ImproperlyConfigured, match="User can't be written"):
        require_watched(user.proxy_document, other, post)


def test_collections_of_another_deployment_are_not_watched(registry: mongoz.Registry) -> None:
    user = define(registry, watch=["*"])
    same, elsewhere = mongoz.Registry(URL), mongoz.Registry("mongodb://elsewhere.invalid")
    assert is_watched(user, same.get_database("shop").get_collection("users"))
    assert is_watched(user, same.get_database("x").get_collection("users"))
    away = elsewhere.get_database("shop").get_collection("users")
    assert not is_watched(user, away)
    with pytest.raises(ImproperlyConfigured, match="a dispatcher serves one deployment"):
        require_watched(user, away, listening(user))


# -- the dispatcher ----------------------------------------------------------------------------------


def test_the_scope_is_one_database_only_if_all_patterns_are_in_it() -> None:
    one = Scope.of([("shop", "users")], [NamespacePattern("shop", "users_*")])
    assert one.database == "shop"
    assert Scope.of([], [NamespacePattern("shop", "u*")]).database == "shop"
    for patterns in ([NamespacePattern("t_*", "users")], [NamespacePattern("other", "u*")]):
        assert Scope.of([("shop", "users")], patterns).database is None
        assert Scope.of([], [NamespacePattern("t_*", "users")]).database is None


def test_patterns_change_the_fingerprint_and_their_order_does_not() -> None:
    a, b = NamespacePattern("t_*", "users"), NamespacePattern("shop", "users_*")
    plain = Scope.of([("shop", "users")])
    assert Scope.of([("shop", "users")], [a, b]).fingerprint == Scope.of([("shop", "users")], [b, a]).fingerprint
    prints = {
        plain.fingerprint,
        Scope.of([("shop", "users")], [a]).fingerprint,
        Scope.of([("shop", "users")], [b]).fingerprint,
        Scope.of([("shop", "users")], [a, b]).fingerprint,
        Scope.of([("shop", "users")], [a], apart_from="t_state").fingerprint,
    }
    assert len(prints) == 5
    # The state database is excluded only where a pattern could match it.
    assert Scope.of([], [a], apart_from="state").fingerprint == Scope.of([], [a]).fingerprint


def test_the_pipeline_has_the_conditions_of_all_patterns() -> None:
    scope = Scope.of([("shop", "users")], [NamespacePattern("t_*", "users"), NamespacePattern("shop", "u.*")])
    (stage,) = scope.pipeline()
    kinds = stage["$match"]["$or"]
    assert kinds[0]["$or"] == [
        {"ns.db": "shop", "ns.coll": "users"},
        {"ns.db": "shop", "ns.coll": Regex(r"^(?!system\.)u\..*$", re.DOTALL)},
        {"ns.db": Regex("^t_[^.]*$"), "ns.coll": "users"},
    ]
    assert [set(target) for target in kinds[1]["$or"]] == [{"to.db", "to.coll"}] * 3
    assert kinds[2]["ns.db"] == {"$in": ["shop", Regex("^t_[^.]*$")]}


def insert_into(namespace: Namespace) -> Change:
    row = {"_id": ObjectId(), "name": "Ada"}
    return Change(
        "82", "insert", namespace, row["_id"], Timestamp(7, 1), None, row, None, "post", frozenset(), None, 99
    )


def test_a_namespace_has_the_receivers_of_all_documents_that_watch_it(registry: mongoz.Registry) -> None:
    user = define(registry, watch=["tenant_*", "archive.users"])
    log = define(registry, name="Log", collection="logs", watch=["tenant_*.users", "state.users"])
    for document in (user, log):
        listening(document, delivery="any")
    routes = Routes(registry.all_documents, "billing", "tenant_state")
    assert routes.namespaces == (("shop", "users"), ("shop", "logs"), ("archive", "users"), ("state", "users"))
    assert [str(pattern) for pattern in routes.patterns] == ["tenant_*.users"]

    def told(*namespace: str) -> list[tuple[Any, str | None]]:
        calls = routes.route(insert_into(namespace))  # type: ignore[arg-type]
        return [(call.document, call.collection and call.collection.namespace) for call in calls]

    for _ in range(2):  # found, then cached
        assert told("shop", "users") == [(user, None)]
        assert told("archive", "users") == [(user, "archive.users")]
        assert told("tenant_1", "users") == [(user, "tenant_1.users"), (log, "tenant_1.users")]
        assert told("tenant_1", "logs") == []
        assert told("tenant_state", "users") == []  # the dispatcher's state
        assert told("state", "users") == [(log, "state.users")]


def test_the_cache_of_receivers_is_bounded(registry: mongoz.Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes_module, "_MOST_REMEMBERED", 10)
    user = define(registry, watch=["tenant_*"])
    listening(user, delivery="any")
    routes = Routes([user], "billing")
    for number in range(25):
        (calls,) = routes.route(insert_into((f"tenant_{number}", "users")))
        assert calls.collection is not None
        assert calls.collection.database.name == f"tenant_{number}"
        assert len(routes._found) <= 10


# -- refusals ----------------------------------------------------------------------------------------

NAMED = {"details": {"schemaRulesNotSatisfied": [{"additionalProperties": ["other", "_mongoz"]}]}}


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (WriteError("no", 121, {"code": 121, "errInfo": NAMED}), "validator refuses '_mongoz'"),
        (WriteError("no", 121, {"code": 121, "errInfo": {"details": {}}}), "may refuse"),
        (WriteError("no", 121), "may refuse"),
        (OperationFailure("no", 121, {"errInfo": NAMED}), "validator refuses '_mongoz'"),
        (WriteError("no", 17419), "has no room"),
        (BulkWriteError({"writeErrors": [{"code": 11000}, {"code": 121, "errInfo": NAMED}]}), "refuses '_mongoz'"),
        (BulkWriteError({"writeErrors": []}), None),
        (DuplicateKeyError("no", 11000), None),
    ],
)
def test_a_refusal_is_explained_once(error: Any, says: str | None) -> None:
    for _ in range(2):
        explain_refusal(error)
    notes = getattr(error, "__notes__", [])
    assert len(notes) == (says is not None)
    if says is not None:
        assert says in notes[0]
