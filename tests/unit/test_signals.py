"""Signals without a server: receivers, their order, and refusals."""

import asyncio
import functools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest

import mongoz
from mongoz.core.signals import (
    Broadcaster,
    Signal,
    post_delete,
    post_save,
    post_update,
    pre_delete,
    pre_save,
    pre_update,
)
from mongoz.exceptions import SignalError
from mongoz.signals import muted
from mongoz.signals.post_signals import plan_firing
from tests.support import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
DECORATORS = {
    decorator.__name__: decorator
    for decorator in (pre_save, post_save, pre_update, post_update, pre_delete, post_delete)
}
POST = [name for name in DECORATORS if name.startswith("post_")]
PRE = [name for name in DECORATORS if name.startswith("pre_")]


def document(name: str = "User", *bases: type, **meta: Any) -> Any:
    """A document class of this name with these Meta options."""
    namespace = {
        "__module__": __name__,
        "__qualname__": name,
        "title": mongoz.String(default=""),
        "Meta": type("Meta", (), meta),
    }
    return type(mongoz.Document)(name, bases or (mongoz.Document,), namespace)


def dispatched_document(name: str = "User", *bases: type) -> Any:
    registry = mongoz.Registry("mongodb://192.0.2.1", dispatched="tests")
    return document(name, *bases, registry=registry, database="signals")


def recorder(log: list[Any], entry: Any, error: Exception | None = None) -> Any:
    """A receiver that appends `entry` to the log, then raises or returns it."""

    async def receive(sender: Any, **kwargs: Any) -> Any:
        log.append(entry)
        if error is not None:
            raise error
        return entry

    return receive


async def module_level(sender: Any, **kwargs: Any) -> None:
    """On a dispatched registry a receiver needs a name that other processes can import."""


async def another_at_module_level(sender: Any, **kwargs: Any) -> None:
    pass


# -- receivers -----------------------------------------------------------------------------------------


class Listener:
    async def method(self, sender: Any, instance: Any = None, **kwargs: Any) -> str:
        return "method"

    async def __call__(self, sender: Any, **kwargs: Any) -> str:
        return "object"

    @classmethod
    async def of_class(cls, sender: Any, **kwargs: Any) -> str:
        return "class method"

    @staticmethod
    async def static(sender: Any, **kwargs: Any) -> str:
        return "static method"


async def function(sender: Any, **kwargs: Any) -> str:
    return "function"


async def anything(*args: Any, **kwargs: Any) -> str:
    return "anything"


async def with_prefix(prefix: str, sender: Any, **kwargs: Any) -> str:
    return f"{prefix} partial"


async def keyword_only(*, sender: Any, **kwargs: Any) -> str:
    return "keyword only"


@pytest.mark.parametrize(
    ("receiver", "result"),
    [
        (function, "function"),
        (anything, "anything"),
        (keyword_only, "keyword only"),
        (Listener().method, "method"),
        (Listener.of_class, "class method"),
        (Listener.static, "static method"),
        (Listener(), "object"),
        (functools.partial(with_prefix, "a"), "a partial"),
        (functools.partial(functools.partial(function), extra=1), "function"),
        (functools.partial(Listener().method, extra=1), "method"),
        (functools.partial(Listener()), "object"),
        (AsyncMock(return_value="mock"), "mock"),
    ],
)
async def test_every_async_callable_may_be_a_receiver(receiver: Any, result: str) -> None:
    signal = Signal()
    assert signal.connect(receiver) is receiver
    assert await signal.send(sender=None, instance=1) == [(receiver, result)]


def not_async(sender: Any, **kwargs: Any) -> None:
    pass


async def generator(sender: Any, **kwargs: Any) -> Any:
    yield 1


async def without_sender(instance: Any, **kwargs: Any) -> None:
    pass


async def sender_second(instance: Any, sender: Any, **kwargs: Any) -> None:
    pass


async def positional(sender: Any, /, **kwargs: Any) -> None:
    pass


async def without_kwargs(sender: Any, instance: Any) -> None:
    pass


async def without_anything() -> None:
    pass


@pytest.mark.parametrize("connect", [lambda f: Signal().connect(f), post_save(document("Fixed"))])
@pytest.mark.parametrize(
    ("receiver", "missing"),
    [
        (not_async, ["not_async", "async def"]),
        (generator, ["generator", "not async"]),
        (lambda sender, **kwargs: None, ["<lambda>", "async def"]),
        (functools.partial(not_async), ["not_async", "async def"]),
        (MagicMock(), ["async def"]),
        (Mock(), ["async def"]),
        ("module.receiver", ["not callable"]),
        (None, ["not callable"]),
        (without_sender, ["without_sender", "'sender' as its first parameter"]),
        (sender_second, ["sender_second", "'sender' as its first parameter"]),
        # Receivers are called with keywords only.
        (positional, ["positional", "'sender' as its first parameter"]),
        (functools.partial(function, None), ["function", "'sender' as its first parameter"]),
        (without_kwargs, ["without_kwargs", "'**kwargs'"]),
        (without_anything, ["without_anything", "'sender' as its first parameter and '**kwargs'"]),
    ],
)
def test_a_receiver_with_an_impossible_signature_is_refused_on_connect(
    connect: Callable[[Any], Any], receiver: Any, missing: list[str]
) -> None:
    with pytest.raises(SignalError) as caught:
        connect(receiver)
    for words in missing:
        assert words in str(caught.value)


def test_only_missing_parameters_are_named() -> None:
    with pytest.raises(SignalError) as caught:
        Signal().connect(without_kwargs)
    assert "sender' as" not in str(caught.value)


# -- order, connecting, disconnecting ----------------------------------------------------------------


async def test_receivers_run_one_after_another_in_the_order_of_connection() -> None:
    log: list[Any] = []
    signal = Signal()

    async def slow(sender: Any, **kwargs: Any) -> None:
        log.append("slow begins")
        # This receiver yields to other tasks. The second receiver must not run meanwhile.
        for _ in range(5):
            await asyncio.sleep(0)
        log.append("slow ends")

    signal.connect(slow)
    for number in range(3):
        signal.connect(recorder(log, number))
    await signal.send()
    assert log == ["slow begins", "slow ends", 0, 1, 2]


async def test_own_and_inherited_receivers_share_one_order() -> None:
    log: list[Any] = []
    base = document("Base", abstract=True)
    middle = document("Middle", base, abstract=True)
    user = document("User", middle)
    for entry, sender in enumerate([user, base, middle, user, base]):
        sender.signals.post_save.connect(recorder(log, entry))
    await user.signals.post_save.send(sender=user)
    assert log == [0, 1, 2, 3, 4]


async def test_connecting_twice_is_one_connection() -> None:
    log: list[Any] = []
    signal = Signal()
    twice, listener = recorder(log, "twice"), Listener()
    for _ in range(2):
        signal.connect(twice)
        signal.connect(listener.method)  # every access creates a new bound method
    assert len(await signal.send()) == 2
    assert log == ["twice"]
    assert signal.disconnect(twice)
    assert signal.disconnect(listener.method)
    assert await signal.send() == []


def test_bound_methods_of_two_objects_are_two_receivers() -> None:
    signal = Signal()
    signal.connect(Listener().method)
    signal.connect(Listener().method)
    assert len(signal.receivers) == 2


@pytest.mark.parametrize("name", DECORATORS)
async def test_decorators_return_the_function_and_connect_it(name: str) -> None:
    user = document()
    assert DECORATORS[name](user)(module_level) is module_level
    assert [receiver for receiver, _ in await getattr(user.signals, name).send(sender=user)] == [module_level]
    others = [other for other in DECORATORS if other != name]
    assert not [other for other in others if getattr(user.signals, other).receivers]


@pytest.mark.parametrize("through", ["class", "meta", "instance", "instance.meta"])
def test_disconnect_returns_whether_the_receiver_was_connected(through: str) -> None:
    user = document()
    signals = {
        "class": user.signals,
        "meta": user.meta.signals,
        "instance": user().signals,
        "instance.meta": user().meta.signals,
    }[through]
    post_save(user)(module_level)
    assert signals.post_save.disconnect(module_level) is True
    assert signals.post_save.disconnect(module_level) is False
    assert not user.signals.post_save.receivers


def test_the_signals_of_a_document_are_one_object() -> None:
    user = document()
    assert isinstance(user.signals, Broadcaster)
    assert user.signals is user.meta.signals is user.Meta.signals is user().signals is user().meta.signals
    assert user.signals.post_save is user().signals.post_save
    assert document().signals is not user.signals


async def test_a_signal_keeps_its_receivers_alive() -> None:
    signal = Signal()
    log: list[Any] = []
    signal.connect(recorder(log, "kept"))  # the signal has the only reference
    await signal.send()
    assert log == ["kept"]


async def test_a_receiver_connected_while_sending_runs_the_next_time() -> None:
    signal, log = Signal(), []

    async def connects(sender: Any, **kwargs: Any) -> None:
        signal.connect(late)

    late = recorder(log, "late")
    signal.connect(connects)
    await signal.send()
    assert log == []
    await signal.send()
    assert log == ["late"]


# -- several senders ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, tuple])
async def test_one_receiver_may_be_connected_to_several_documents(kind: type) -> None:
    user, order = document("User"), document("Order")
    senders = []

    @post_save(kind([user, order]))
    async def receive(sender: Any, **kwargs: Any) -> None:
        senders.append(sender)

    await user.signals.post_save.send(sender=user)
    await order.signals.post_save.send(sender=order)
    assert senders == [user, order]
    assert user.signals.post_save.disconnect(receive)
    assert [r.function for r in order.signals.post_save.receivers] == [receive]


class Part(mongoz.EmbeddedDocument):
    pass


@pytest.mark.parametrize("name", DECORATORS)
@pytest.mark.parametrize("bad", [object(), "User", int, None, Part, document()()])
def test_a_list_with_a_bad_member_connects_nothing(name: str, bad: Any) -> None:
    user = document()
    with pytest.raises(SignalError, match="takes a document or a list of documents"):
        DECORATORS[name]([user, bad])(module_level)
    assert not getattr(user.signals, name).receivers


def test_a_refusal_of_one_sender_does_not_change_the_others() -> None:
    first, second, third = document("First"), document("Second"), dispatched_document("Third")
    first.signals.post_save.connect(local := recorder([], 1))
    with pytest.raises(SignalError, match="name="):
        post_save([first, second, third])(local)
    assert local in first.signals.post_save, "its earlier connection remains"
    assert local not in second.signals.post_save
    assert local not in third.signals.post_save


@pytest.mark.parametrize("empty", [[], ()])
def test_an_empty_list_of_senders_is_refused(empty: Any) -> None:
    with pytest.raises(SignalError, match="at least one document"):
        post_save(empty)


# -- custom signals ----------------------------------------------------------------------------------


async def test_a_custom_signal_is_assigned_and_sent() -> None:
    user = document()
    signal = user.meta.signals.on_verify = mongoz.Signal()
    assert user.signals.on_verify is user().signals.on_verify is signal
    signal.connect(module_level)
    assert await user.signals.on_verify.send(sender=user, instance=user()) == [(module_level, None)]
    assert signal.disconnect(module_level)
    assert await user.signals.on_verify.send(sender=user) == []


def test_naming_an_unknown_signal_creates_it() -> None:
    user = document()
    created = user.signals.custom
    assert isinstance(created, Signal)
    assert user.signals.custom is created is user().signals.custom


def test_a_signal_belongs_to_one_document() -> None:
    user, order = document("User"), document("Order")
    user.signals.custom.connect(module_level)
    assert not order.signals.custom.receivers


@pytest.mark.parametrize("wrong", [None, 1, "signal", Signal, module_level, object()])
@pytest.mark.parametrize("name", ["on_verify", "post_save", "pre_custom"])
def test_only_a_signal_can_be_assigned(name: str, wrong: Any) -> None:
    user = document()
    before = user.signals.post_save
    with pytest.raises(SignalError, match=rf"User\.signals\.{name} must be a mongoz\.Signal"):
        setattr(user.meta.signals, name, wrong)
    assert user.signals.post_save is before


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("post_svae", "post_save"),
        ("pre_saved", "pre_save"),
        ("post_updated", "post_update"),
        ("pre_deleted", "pre_delete"),
        ("post_deletes", "post_delete"),
    ],
)
def test_the_error_for_a_misspelt_signal_names_the_nearest_signal(misspelt: str, meant: str) -> None:
    user = document()
    for read in (lambda: getattr(user.signals, misspelt), lambda: getattr(user().signals, misspelt)):
        with pytest.raises(SignalError, match=f"{misspelt}.*Did you mean '{meant}'"):
            read()
    assert misspelt not in user.signals


def test_an_unknown_signal_without_a_similar_name_is_an_error() -> None:
    with pytest.raises(SignalError, match="post_x"):
        document().signals.post_x  # noqa: B018 - reading it is the test


def test_the_name_of_an_assigned_signal_may_start_with_pre_or_post() -> None:
    user = document()
    user.signals.post_verify = signal = Signal()
    assert user.signals.post_verify is signal


async def test_a_custom_signal_of_an_abstract_document_is_found_on_its_subclasses() -> None:
    base = document("Base", abstract=True)
    before = document("Before", base)
    base.signals.on_verify = signal = Signal()
    after = document("After", document("Middle", base, abstract=True))
    concrete_child = document("Child", after)
    assert before.signals.on_verify is signal
    assert after.signals.on_verify is signal
    assert after().signals.on_verify is signal
    assert concrete_child.signals.on_verify is signal
    base.signals.post_verify = post_verify = Signal()
    assert after.signals.post_verify is post_verify


def test_subclasses_do_not_get_a_custom_signal_of_a_concrete_document() -> None:
    user = document()
    user.signals.on_verify = Signal()
    assert document("Admin", user).signals.on_verify is not user.signals.on_verify


# -- sending -----------------------------------------------------------------------------------------


async def test_send_stops_at_the_first_exception() -> None:
    log: list[Any] = []
    signal = Signal()
    signal.connect(recorder(log, 1))
    signal.connect(recorder(log, 2, ZeroDivisionError()))
    signal.connect(recorder(log, 3))
    with pytest.raises(ZeroDivisionError):
        await signal.send()
    assert log == [1, 2]


async def test_send_robust_runs_all_receivers_and_returns_the_exceptions() -> None:
    log: list[Any] = []
    error = ZeroDivisionError()
    signal = Signal()
    receivers = [recorder(log, 1), recorder(log, 2, error), recorder(log, 3)]
    for receiver in receivers:
        signal.connect(receiver)
    assert await signal.send_robust() == list(zip(receivers, [1, error, 3], strict=True))
    assert log == [1, 2, 3]


@pytest.mark.parametrize("send", ["send", "send_robust"])
async def test_receivers_get_the_sent_keywords(send: str) -> None:
    got = {}

    async def receive(sender: Any, **kwargs: Any) -> None:
        got.update(kwargs, sender=sender)

    signal = Signal()
    signal.connect(receive)
    # Names that an implementation could use for its own parameters.
    await getattr(signal, send)(sender=int, instance=1, self=2, receiver=3, name=4)
    assert got == {"sender": int, "instance": 1, "self": 2, "receiver": 3, "name": 4}


@pytest.mark.parametrize("send", ["send", "send_robust"])
async def test_a_cancellation_is_not_a_result(send: str) -> None:
    signal = Signal()
    signal.connect(recorder([], 1, asyncio.CancelledError()))  # type: ignore[arg-type]
    with pytest.raises(asyncio.CancelledError):
        await getattr(signal, send)()


# -- abstract senders --------------------------------------------------------------------------------


async def test_an_abstract_sender_stands_for_present_and_future_subclasses() -> None:
    base = document("Base", abstract=True)
    present = document("Present", base)
    post_save(base)(module_level)
    future = document("Future", document("Middle", base, abstract=True))
    for sender in (present, future):
        assert await sender.signals.post_save.send(sender=sender) == [(module_level, None)]
    assert not present.signals.post_save.disconnect(module_level), "the receiver is connected to the base"
    assert base.signals.post_save.disconnect(module_level)
    for sender in (present, future):
        assert await sender.signals.post_save.send(sender=sender) == []


async def test_document_itself_is_an_abstract_sender() -> None:
    user = document()
    post_save(mongoz.Document)(module_level)
    try:
        assert await user.signals.post_save.send(sender=user) == [(module_level, None)]
    finally:
        mongoz.Document.signals.post_save.disconnect(module_level)


async def test_a_receiver_of_a_concrete_parent_does_not_run_for_its_subclasses() -> None:
    user = document()
    admin = document("Admin", user)
    post_save(user)(module_level)
    assert await admin.signals.post_save.send(sender=admin) == []
    assert await user.signals.post_save.send(sender=user) == [(module_level, None)]


@pytest.mark.parametrize("base_first", [True, False])
async def test_a_receiver_connected_to_parent_and_child_runs_once(base_first: bool) -> None:
    base = document("Base", abstract=True)
    user = document("User", base)
    for sender in [base, user] if base_first else [user, base]:
        post_save(sender)(module_level)
    assert await user.signals.post_save.send(sender=user) == [(module_level, None)]
    assert user.signals.post_save.disconnect(module_level)
    assert await user.signals.post_save.send(sender=user) == [(module_level, None)], "base remains connected"


async def test_a_receiver_connected_to_two_abstract_parents_runs_once() -> None:
    one, two = document("One", abstract=True), document("Two", abstract=True)
    user = document("User", one, two)
    post_save([one, two])(module_level)
    assert await user.signals.post_save.send(sender=user) == [(module_level, None)]


# -- options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POST)
@pytest.mark.parametrize("mode", ["any", "process", "dispatcher"])
async def test_delivery_decides_where_a_receiver_runs(name: str, mode: str) -> None:
    user = document()
    DECORATORS[name](user, delivery=mode)(module_level)
    (receiver,) = getattr(user.signals, name).receivers
    assert receiver.delivery == mode
    assert receiver.runs_in_process is (mode != "dispatcher")
    assert receiver.runs_in_dispatcher is (mode != "process")
    assert plan_firing(getattr(user.signals, name)).receivers == (() if mode == "dispatcher" else (receiver,))


@pytest.mark.parametrize("wrong", ["Any", "", 1, True, "stream"])
def test_the_error_for_a_wrong_value_of_delivery_lists_the_right_values(wrong: Any) -> None:
    user = document()
    with pytest.raises(SignalError, match="'any', 'process', 'dispatcher'"):
        post_save(user, delivery=wrong)(module_level)
    assert not user.signals.post_save.receivers


@pytest.mark.parametrize("wrong", ["", 1, b"name"])
def test_a_name_is_a_string(wrong: Any) -> None:
    with pytest.raises(SignalError, match="name="):
        post_save(document(), name=wrong)(module_level)


@pytest.mark.parametrize("option", [{"delivery": "any"}, {"name": "mine"}])
@pytest.mark.parametrize("name", [*PRE, "on_verify"])
def test_options_are_for_post_signals_only(name: str, option: dict[str, Any]) -> None:
    user = document()
    signal = getattr(user.signals, name)
    with pytest.raises(SignalError, match=f"{next(iter(option))}= is for post_"):
        signal.connect(module_level, **option)
    assert not signal.receivers


@pytest.mark.parametrize("option", [{"delivery": "any"}, {"name": "mine"}])
@pytest.mark.parametrize("name", PRE)
def test_options_on_a_pre_decorator_are_signal_errors(name: str, option: dict[str, Any]) -> None:
    user = document()
    with pytest.raises(SignalError, match=f"{next(iter(option))}= is for post_"):
        DECORATORS[name](user, **option)(module_level)
    assert not getattr(user.signals, name).receivers


# -- identities on a dispatched registry -------------------------------------------------------------


def test_the_name_of_a_receiver_is_its_module_and_qualname_by_default() -> None:
    user = dispatched_document()
    post_save(user)(module_level)
    post_save(user, name="mine")(another_at_module_level)
    post_save(user)(Listener.of_class)
    assert [receiver.name for receiver in user.signals.post_save.receivers] == [
        f"{__name__}.module_level",
        "mine",
        f"{__name__}.Listener.of_class",
    ]


def test_an_id_is_a_hash_of_sender_signal_and_name() -> None:
    user, order = dispatched_document("User"), dispatched_document("Order")
    for signals in (user.signals, order.signals):
        for name in POST:
            getattr(signals, name).connect(module_level)
            getattr(signals, name).connect(another_at_module_level)
    ids = [
        r.id
        for signals in (user.signals, order.signals)
        for name in POST
        for r in getattr(signals, name).receivers
    ]
    assert {len(id_) for id_ in ids} == {8}
    assert len(set(ids)) == len(ids) == 12

    again = dispatched_document("User")
    post_save(again)(module_level)
    assert again.signals.post_save.receivers[0].id == user.signals.post_save.receivers[0].id


def test_two_receivers_of_one_name_are_an_error() -> None:
    user = dispatched_document()
    post_save(user, name="mine")(module_level)
    with pytest.raises(SignalError, match=r"known as 'mine'.*give one of them another name="):
        post_save(user, name="mine")(another_at_module_level)
    assert another_at_module_level not in user.signals.post_save
    # Another signal makes another identity.
    post_update(user, name="mine")(another_at_module_level)


def test_two_receivers_whose_ids_collide_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collision has a probability of 2**-64. A stamp could not distinguish the two receivers."""
    monkeypatch.setattr("mongoz.signals.receivers.receiver_id", lambda parts: bytes(8))
    user = dispatched_document()
    post_save(user, name="mine")(module_level)
    with pytest.raises(SignalError, match=r"have the id 0000000000000000 .*give one of them another name="):
        post_save(user, name="yours")(another_at_module_level)
    assert another_at_module_level not in user.signals.post_save


def test_two_receivers_of_one_name_on_parent_and_child_are_an_error() -> None:
    base = document("Base", abstract=True)
    user = dispatched_document("User", base)
    post_save(user, name="mine")(module_level)
    with pytest.raises(SignalError, match="known as 'mine'"):
        post_save(base, name="mine")(another_at_module_level)
    assert not base.signals.post_save.receivers


def test_a_refused_subclass_leaves_its_parents_usable() -> None:
    base = document("Base", abstract=True)
    post_save(base)(local := recorder([], 1))
    with pytest.raises(SignalError, match="name=") as caught:
        dispatched_document("User", base)
    assert caught.tb, "the reference keeps the refused class alive, which must not cause another error"
    assert base.signals.post_save.disconnect(local)
    post_save(base)(recorder([], 2))


@pytest.mark.parametrize("name", POST)
def test_a_local_receiver_needs_a_name(name: str) -> None:
    user = dispatched_document()
    local = recorder([], 1)
    with pytest.raises(SignalError, match=r"<locals>.*connect it with name="):
        DECORATORS[name](user)(local)
    DECORATORS[name](user, name="mine")(local)
    assert [receiver.name for receiver in getattr(user.signals, name).receivers] == ["mine"]


def test_without_a_dispatcher_and_on_pre_signals_no_identity_is_needed() -> None:
    user, plain = dispatched_document(), document()
    for name in PRE:
        for _ in range(2):
            DECORATORS[name](user)(recorder([], 1))
    for name in POST:
        for _ in range(2):
            DECORATORS[name](plain, name="same")(recorder([], 1))
    user.signals.on_verify.connect(recorder([], 1))


SCRIPT = """
import sys
import mongoz
from mongoz.core.signals import post_save

registry = mongoz.Registry("mongodb://192.0.2.1", dispatched=True)

class User(mongoz.Document):
    name: str = mongoz.String()

    class Meta:
        registry = registry
        database = "script"

@post_save(User)
async def welcome(sender, **kwargs):
    pass

(receiver,) = User.signals.post_save.receivers
print(receiver.name, receiver.id.hex())
"""


def run_python(*arguments: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("package", [pytest.param("", marks=pytest.mark.slow), "shop/inner"])
def test_receivers_of_a_script_have_their_importable_name(tmp_path: Path, package: str) -> None:
    folder = tmp_path / package
    folder.mkdir(parents=True, exist_ok=True)
    while folder != tmp_path:
        (folder / "__init__.py").touch()
        folder = folder.parent
    path = tmp_path / package / "app.py"
    path.write_text(SCRIPT)
    module = ".".join([*Path(package).parts, "app"])
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": ""}
    runs = [
        run_python(str(path), cwd=ROOT, env=environment),
        run_python("-m", module, cwd=tmp_path, env=environment),
        run_python("-c", f"import {module}", cwd=tmp_path, env=environment),
    ]
    assert [run.stderr for run in runs] == ["", "", ""]
    assert runs[0].stdout.startswith(f"{module}.welcome ")
    # The same id, because the dispatcher must recognize the stamps of the script.
    assert len({run.stdout for run in runs}) == 1


def test_a_receiver_without_an_importable_module_needs_a_name(tmp_path: Path) -> None:
    run = run_python("-c", SCRIPT, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""})
    assert "SignalError" in run.stderr
    assert "__main__.welcome" in run.stderr
    assert "name=" in run.stderr


# -- muting ------------------------------------------------------------------------------------------


HEARD = ("pre_save", "post_save", "post_delete", "on_verify")


async def heard(*senders: Any) -> set[str]:
    """The signals of these senders that reach a receiver, as `Sender.signal`."""
    reached = set()
    for sender in senders:
        for name in HEARD:
            signal = getattr(sender.signals, name)
            signal.connect(module_level)
            sent, robust = await signal.send(sender=sender), await signal.send_robust(sender=sender)
            assert sent == robust
            if name in POST:
                firing = plan_firing(signal)
                assert bool(firing.receivers) is bool(sent)
                assert firing.muted is not bool(sent)
            if sent:
                reached.add(f"{sender.__name__}.{name}")
    return reached


def every(*prefixes: str) -> set[str]:
    return {
        f"{prefix}.{name}" for prefix in prefixes for name in ("pre_save", "post_save", "post_delete", "on_verify")
    }


async def test_muting_covers_everything_or_the_named_signals() -> None:
    base = document("Base", abstract=True)
    user, order = document("User", base), document("Order")
    child = document("Child", user)
    everything = every("User", "Order", "Child")
    cases: dict[tuple[Any, ...], set[str]] = {
        (): set(),
        (user,): everything - every("User"),
        (user, order): every("Child"),
        # As with receivers, an abstract document means its subclasses. A concrete one means only itself.
        (base,): every("Order"),
        (mongoz.Document,): set(),
        ("post_save",): {name for name in everything if not name.endswith("post_save")},
        ("on_verify", "pre_save"): {name for name in everything if not name.endswith(("on_verify", "pre_save"))},
        (user, "post_save"): everything - {"User.post_save"},
        (user, order, "post_save", "pre_save"): everything
        - {"User.post_save", "Order.post_save", "User.pre_save", "Order.pre_save"},
    }
    for targets, reached in cases.items():
        with muted(*targets):
            assert await heard(user, order, child) == reached, targets
    assert await heard(user, order, child) == everything


async def test_muted_blocks_nest_and_end_with_an_exception() -> None:
    user, order = document("User"), document("Order")
    with muted(user):
        with muted(order):
            assert await heard(user, order) == set()
        assert await heard(user, order) == every("Order")
        with pytest.raises(ZeroDivisionError), muted():
            raise ZeroDivisionError
        assert await heard(user, order) == every("Order")
    assert await heard(user, order) == every("User", "Order")


async def test_muting_is_local_to_the_task() -> None:
    user = document()
    user.signals.post_save.connect(module_level)
    inside, outside_is_done = asyncio.Event(), asyncio.Event()

    async def mutes() -> None:
        with muted():
            inside.set()
            await outside_is_done.wait()
            assert await asyncio.create_task(user.signals.post_save.send(sender=user)) == [], "its child task"

    async def does_not() -> None:
        await inside.wait()
        assert await user.signals.post_save.send(sender=user) == [(module_level, None)]
        outside_is_done.set()

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(mutes(), does_not())


@pytest.mark.parametrize("wrong", [1, None, int, object(), Part])
def test_only_documents_and_names_can_be_muted(wrong: Any) -> None:
    with pytest.raises(SignalError, match="muted"), muted(document(), wrong):
        pytest.fail("entered")


# -- the receivers of a committed write --------------------------------------------------------------


async def test_all_post_receivers_run_and_a_single_error_is_raised_unchanged() -> None:
    user, log, error = document(), [], ZeroDivisionError("the one")
    for entry, raised in enumerate([None, error, None]):
        user.signals.post_save.connect(recorder(log, entry, raised))
    with pytest.raises(ZeroDivisionError) as caught:
        await plan_firing(user.signals.post_save).run(user, "token", {"instance": user(), "created": True})
    assert caught.value is error
    assert log == [0, 1, 2]


async def test_several_errors_of_post_receivers_become_a_group() -> None:
    user, log = document(), []
    errors = [ZeroDivisionError("first"), KeyError("second")]
    for entry, raised in enumerate([errors[0], None, errors[1], None]):
        user.signals.post_save.connect(recorder(log, entry, raised))
    with pytest.raises(ExceptionGroup, match="2 of 4 post_save receivers of User") as caught:
        await plan_firing(user.signals.post_save).run(user, "token", {"instance": user(), "created": True})
    assert list(caught.value.exceptions) == errors
    assert log == [0, 1, 2, 3]


@pytest.mark.parametrize("name", POST)
async def test_post_receivers_get_their_delivery(name: str) -> None:
    user, instance, got = document(), object(), []

    async def receive(sender: Any, delivery: Any, **kwargs: Any) -> None:
        got.append((sender, delivery, kwargs))

    DECORATORS[name](user, name="mine")(receive)
    await plan_firing(getattr(user.signals, name)).run(user, "token", {"instance": instance})
    ((sender, delivery, kwargs),) = got
    assert sender is user
    assert kwargs == {"instance": instance}
    assert asdict(delivery) == {
        "id": "token",
        "signal": name,
        "receiver": "mine",
        "origin": "process",
        "attempt": 1,
        "term": 0,
        "cluster_time": None,
        "wall_time": None,
        "image": "pre" if name == "post_delete" else "post",
        "replayed": False,
        "superseded": False,
        "session": None,
        "context": None,
    }


def test_a_built_in_signal_can_be_replaced_and_its_receivers_are_known() -> None:
    class Base(mongoz.Document):
        class Meta:
            abstract = True

    class Child(Base):
        name: str = mongoz.String()

    async def receiver(sender, **kwargs): ...

    replacement = mongoz.Signal()
    replacement.connect(receiver)
    Base.signals.post_save = replacement
    assert Base.signals.post_save is replacement
    (inherited,) = Child.signals.post_save.receivers
    assert inherited.function is receiver
    assert len(inherited.id) == 8


async def test_a_broadcaster_without_a_document_has_signals_too() -> None:
    signals, heard = Broadcaster(), []

    async def hear(sender: Any, **kwargs: Any) -> None:
        heard.append((sender, kwargs))

    signals.on_verify = Signal()
    for name in ("on_verify", "post_save", "found"):
        signal = getattr(signals, name)
        signal.connect(hear)
        await signal.send("me", name=name)
    assert heard == [("me", {"name": name}) for name in ("on_verify", "post_save", "found")]
    for wrong in (None, 5, hear):
        with pytest.raises(SignalError, match=r"must be a mongoz\.Signal"):
            signals.other = wrong
    with pytest.raises(SignalError, match="post_saved"):
        signals.post_saved  # noqa: B018
    assert repr(signals).startswith("<Broadcaster of no document: found, on_verify")
    assert mongoz.Delivery is mongoz.signals.Delivery
