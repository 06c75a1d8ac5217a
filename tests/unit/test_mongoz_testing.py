"""Capturing signals: records, assertions, and cleanup."""

import asyncio
from typing import Any

import pytest

import mongoz
from mongoz.core.signals import post_save, post_update, pre_save
from mongoz.exceptions import SignalError
from mongoz.signals import Signal, muted
from mongoz.signals.post_signals import plan_firing
from mongoz.testing import Captured, capture


@pytest.fixture
def registry() -> mongoz.Registry:
    return mongoz.Registry("mongodb://localhost:27017", dispatched="test")


def make(registry: mongoz.Registry, name: str, *bases: type, abstract: bool = False) -> Any:
    meta = type("Meta", (), {"registry": registry, "database": "test", "abstract": abstract})
    namespace = {"__module__": __name__, "__qualname__": name, "Meta": meta}
    if not bases:
        namespace |= {"__annotations__": {"name": str}, "name": mongoz.String()}
    return type(mongoz.Document)(name, bases or (mongoz.Document,), namespace)


@pytest.fixture
def User(registry: mongoz.Registry) -> Any:
    return make(registry, "User")


@pytest.fixture
def ran(User: Any) -> list[str]:
    """The calls of the application's receivers."""
    names: list[str] = []

    async def before(sender: Any, **kwargs: Any) -> str:
        names.append("before")
        return "checked"

    async def after(sender: Any, **kwargs: Any) -> None:
        names.append("after")

    async def verified(sender: Any, **kwargs: Any) -> str:
        names.append("verified")
        return "sent"

    pre_save(User)(before)
    post_save(User, name="after")(after)
    User.signals.on_verify.connect(verified)
    return names


async def write(document: Any, instance: Any, *, created: bool = True) -> None:
    """Sends the signals of `save` without its I/O."""
    await document.signals.pre_save.send(document, instance=instance, created=created)
    await plan_firing(document.signals.post_save).run(
        document, "id", {"instance": instance, "created": created, "previous": None}
    )


async def test_a_capture_records_signals_in_order_and_runs_the_receivers(User, ran):
    ada = User(name="Ada")
    with capture(User) as captured:
        await write(User, ada)
        results = await User.signals.on_verify.send(User, instance=ada, how="by mail")
    await write(User, ada)
    assert captured.names == ["pre_save", "post_save", "on_verify"]
    assert ran == ["before", "after", "verified", "before", "after"]
    assert [result for _, result in results] == ["sent"]
    before, after, verified = captured
    assert (before.sender, before.instance, before.kwargs["created"]) == (User, ada, True)
    assert after.kwargs["delivery"].signal == "post_save"
    assert dict(verified.kwargs) == {"instance": ada, "how": "by mail"}


async def test_signals_without_receivers_are_recorded(User):
    with capture(User) as captured:
        assert await User.signals.pre_delete.send(User, instance=User(name="Ada")) == []
        assert await User.signals.on_ban.send_robust(None) == []  # a new signal
    assert captured.names == ["pre_delete", "on_ban"]
    assert captured[1].instance is None


async def test_a_record_keeps_the_values_at_the_time_of_the_signal(User):
    ada = User(name="Ada")
    with capture(User) as captured:
        await write(User, ada)
        ada.name = "Bea"
        await write(User, ada, created=False)
    assert [fired.values["name"] for fired in captured.named("post_save")] == ["Ada", "Bea"]
    captured.assert_fired("post_save", instance__name="Ada", created=True)
    captured.assert_fired("post_save", times=2, instance=ada)


async def test_in_a_silent_capture_receivers_do_not_run_and_are_not_in_the_stamp(User, ran):
    (real,) = (receiver.id for receiver in User.signals.post_save.receivers)
    with capture(User, silent=True) as captured:
        await write(User, User(name="Ada"))
        assert await User.signals.on_verify.send(User) == []
        assert await User.signals.on_verify.send_robust(User) == []
        silent = stamped(User)
    with capture(User):
        loud = stamped(User)
    assert ran == []
    assert captured.names == ["pre_save", "post_save", "on_verify", "on_verify"]
    assert real not in silent
    assert real in loud
    assert stamped(User) == {real}


def stamped(document: Any) -> set[bytes]:
    """The receivers that a stamp names."""
    return {id_ for receiver in plan_firing(document.signals.post_save).receivers for id_ in receiver.ids}


async def test_a_dispatcher_finds_its_receivers_during_a_silent_capture(User, ran):
    with capture(User, silent=True):
        listening = [r.name for r in User.signals.post_save.receivers if r.runs_in_dispatcher]
    assert listening == ["after"]


async def test_an_error_of_a_receiver_is_recorded_and_reaches_the_caller(User):
    @pre_save(User)
    async def refuse(sender: Any, **kwargs: Any) -> None:
        raise ValueError("no")

    with capture(User) as captured, pytest.raises(ValueError, match="no"):
        await write(User, User(name="Ada"))
    assert captured.names == ["pre_save"]


async def test_send_robust_returns_the_same_with_a_capture(User):
    @pre_save(User)
    async def fails(sender: Any, **kwargs: Any) -> None:
        raise ValueError("no")

    with capture(User) as captured:
        ((function, error),) = await User.signals.pre_save.send_robust(User)
    assert function is fails
    assert isinstance(error, ValueError)
    assert captured.names == ["pre_save"]


async def test_muted_signals_do_not_fire(User, ran):
    with capture(User) as captured, muted(User):
        await write(User, User(name="Ada"))
        await User.signals.on_verify.send_robust(User)
    captured.assert_nothing_fired()
    assert ran == []


async def test_a_single_signal_can_be_captured(User):
    with capture(User.signals.post_save) as captured:
        await write(User, User(name="Ada"))
    assert captured.names == ["post_save"]
    with pytest.raises(SignalError, match=r"User\.pre_save is not captured"):
        captured.assert_fired(User.signals.pre_save)
    with pytest.raises(SignalError, match=r"No signal 'post_sav' is captured\. Did you mean 'post_save'"):
        captured.assert_fired("post_sav")


async def test_a_custom_signal_without_a_document_can_be_captured():
    paid = Signal()
    with capture(paid) as captured:
        await paid.send("shop", amount=5)
    captured.assert_fired(paid, amount=5)
    assert str(captured[0]) == "'shop'.(custom)(amount=5)"


async def test_abstract_documents_stand_for_their_subclasses(registry):
    Base = make(registry, "Base", abstract=True)
    One, Two, Other = make(registry, "One", Base), make(registry, "Two", Base), make(registry, "Other")
    Base.signals.on_verify = Signal()
    ran = []

    @post_save(Base, name="inherited")
    async def inherited(sender: Any, **kwargs: Any) -> None:
        ran.append(sender)

    with capture(Base, silent=True) as captured:
        await write(One, One(name="1"))
        await write(Two, Two(name="2"))
        await write(Other, Other(name="3"))
        await Two.signals.on_verify.send(Two)
    assert ran == []
    assert captured.names == ["pre_save", "post_save", "pre_save", "post_save", "on_verify"]
    assert captured.of(Base).names == captured.names
    assert captured.of(Two).names == ["pre_save", "post_save", "on_verify"]
    assert captured.of(Two).named("on_verify", Base.signals.on_verify).names == ["on_verify"]
    await write(One, One(name="1"))
    assert ran == [One]
    with capture(One) as inherits:
        await One.signals.on_verify.send(One)
    inherits.assert_fired(Base.signals.on_verify)


async def test_a_registry_stands_for_its_documents(registry):
    One, Two = make(registry, "One"), make(registry, "Two")
    with capture(registry) as captured:
        await write(One, One(name="1"))
        await write(Two, Two(name="2"))
    captured.of(One).assert_fired("post_save")
    captured.assert_fired("post_save", times=2)
    captured.assert_fired(Two.signals.post_save)


async def test_captures_can_be_nested(User, ran):
    with capture(User) as outer:
        await write(User, User(name="Ada"))
        with capture(User, silent=True) as inner:
            await write(User, User(name="Bea"))

            @post_update(User, name="connected inside")
            async def connected_inside(sender: Any, **kwargs: Any) -> None: ...

        await write(User, User(name="Cleo"))
    names = [fired.values["name"] for fired in outer.named("post_save")]
    assert names == ["Ada", "Bea", "Cleo"]
    assert [fired.values["name"] for fired in inner.named("post_save")] == ["Bea"]
    assert ran == ["before", "after"] * 2
    assert connected_inside in User.signals.post_update


async def test_captures_may_end_in_any_order(User, ran):
    first, second = capture(User, silent=True), capture(User.signals.post_save)
    first.__enter__()
    captured = second.__enter__()
    first.__exit__(None, None, None)
    await write(User, User(name="Ada"))
    second.__exit__(None, None, None)
    assert captured.names == ["post_save"]
    assert ran == ["before", "after"]
    assert_untouched(User)


async def test_a_capture_restores_everything_after_an_exception(User, ran):
    connected = {name: getattr(User.signals, name).receivers for name in User.signals}
    with pytest.raises(ZeroDivisionError), capture(User, silent=True):
        1 / 0  # noqa: B018
    assert_untouched(User)
    assert {name: getattr(User.signals, name).receivers for name in User.signals} == connected
    await write(User, User(name="Ada"))
    assert ran == ["before", "after"]


async def test_a_concurrent_capture_sees_its_own_task_or_all_tasks(User, ran):
    inside = asyncio.Barrier(2)

    async def flow(name: str, **options: Any) -> list[str]:
        with capture(User, **options) as captured:
            await inside.wait()
            await write(User, User(name=name))
            await asyncio.create_task(write(User, User(name=f"{name}'s child")))
            await inside.wait()
        return [fired.values["name"] for fired in captured.named("post_save")]

    ada, bea = await asyncio.gather(flow("Ada", this_task=True, silent=True), flow("Bea"))
    assert ada == ["Ada", "Ada's child"]
    assert sorted(bea) == ["Ada", "Ada's child", "Bea", "Bea's child"]
    assert ran == ["before", "after"] * 2  # only for Bea's writes
    assert_untouched(User)


async def test_a_running_worker_task_is_captured_only_with_all_tasks(User, ran):
    jobs: asyncio.Queue[asyncio.Event] = asyncio.Queue()

    async def work() -> None:
        while True:
            done = await jobs.get()
            await write(User, User(name="Ada"))
            done.set()

    async def do() -> None:
        await jobs.put(done := asyncio.Event())
        await done.wait()

    worker = asyncio.create_task(work())
    with capture(User) as all_tasks, capture(User, this_task=True, silent=True) as this_task:
        await do()
    worker.cancel()
    assert all_tasks.names == ["pre_save", "post_save"]
    this_task.assert_nothing_fired()
    assert ran == ["before", "after"]


def assert_untouched(document: Any) -> None:
    assert not any(getattr(document.signals, name).is_tapped for name in document.signals)


async def test_a_disconnect_inside_of_a_capture_stays(User):
    async def receiver(sender: Any, **kwargs: Any) -> None: ...

    pre_save(User)(receiver)
    with capture(User):
        assert User.signals.pre_save.disconnect(receiver)
    assert User.signals.pre_save.receivers == ()


async def test_signals_of_a_custom_class_are_captured(User):
    class Loud(Signal):
        def __init__(self) -> None:
            super().__init__()
            self.heard = 0

        async def send(self, /, sender: Any = None, **kwargs: Any) -> Any:
            self.heard += 1
            return await super().send(sender, **kwargs)

    User.signals.on_noise = Loud()
    with capture(User) as captured:
        await User.signals.on_noise.send(User)
    await User.signals.on_noise.send(User)
    assert captured.names == ["on_noise"]
    assert (type(User.signals.on_noise), User.signals.on_noise.heard) == (Loud, 2)


async def fired(User: Any) -> Captured:
    with capture(User) as captured:
        await write(User, User(name="Ada"))
        await plan_firing(User.signals.post_update).run(
            User,
            "id",
            {"instance": User(name="x" * 100), "update_fields": frozenset({"name"}), "previous": None},
        )
    return captured


async def test_messages_list_the_recorded_signals(User):
    captured = await fired(User)
    with pytest.raises(AssertionError) as caught:
        captured.assert_fired(User.signals.post_save, created=False, instance__name="Ada")
    first, *rest = str(caught.value).splitlines()
    assert first == "User.post_save with created=False, instance__name='Ada' fired never, expected once."
    assert rest == [
        "These signals fired:",
        "  1. User.pre_save(created=True) id=None, name='Ada'",
        "  2. User.post_save(created=True) id=None, name='Ada'",
        f"  3. User.post_update(update_fields=['name']) id=None, name='{'x' * 56}...",
    ]
    with pytest.raises(AssertionError, match=r"^post_save fired once, expected 2 times\."):
        captured.assert_fired("post_save", times=2)
    with pytest.raises(AssertionError, match=r"^post_delete fired never, expected at least once\."):
        captured.assert_fired("post_delete", times=None)
    with pytest.raises(AssertionError, match=r"^User\.post_save fired once, expected never\."):
        captured.assert_not_fired(User.signals.post_save)
    with pytest.raises(AssertionError, match=r"^Nothing should have fired\.\nThese signals fired:\n  1\."):
        captured.assert_nothing_fired()
    with pytest.raises(AssertionError, match=r"\nNothing fired\.$"):
        captured.of().assert_fired("post_save")


async def test_correct_assertions_pass(User):
    captured = await fired(User)
    (update,) = captured.assert_fired("post_update", update_fields={"name"})
    assert update is captured[2]
    assert captured[:1] == [captured[0]]
    captured.assert_fired("pre_save", times=None)
    captured.assert_not_fired("post_delete")
    captured.assert_not_fired("post_save", created=False)
    captured.clear()
    captured.assert_nothing_fired()
    assert repr(captured) == "<Captured: nothing>"


async def test_misspelt_keywords_are_refused(User):
    captured = await fired(User)
    with pytest.raises(SignalError, match=r"post_save has no keyword 'create'\. Did you mean 'created'"):
        captured.assert_not_fired("post_save", create=True)
    message = r"The document of User\.post_save has no field 'nam'\. Did you mean 'name'"
    with pytest.raises(SignalError, match=message):
        captured.assert_not_fired(User.signals.post_save, instance__nam="Ada")


def test_only_documents_signals_and_registries_can_be_captured(User):
    with pytest.raises(SignalError, match="needs documents, signals or a registry"):
        capture()
    with pytest.raises(SignalError, match="not 'post_save'"):
        capture("post_save")  # type: ignore[arg-type]
    with pytest.raises(SignalError, match="in use already"), capture(User) as _, (one := capture(User)), one:
        pass
