"""Contexts of writes: packing, limits, nesting, tasks, and earlier versions of the stamp's reader."""

import asyncio
import enum
import importlib.util
import json
from types import ModuleType
from typing import Any

import bson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

import mongoz
from mongoz.signals.contexts import current_context
from mongoz.stamps import Call, Stamp, context_of
from tests.earlier_version import WITHOUT_CONTEXTS, earlier_source
from tests.unit.stamp_strategies import eight_bytes, with_a_claim

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
values = st.one_of(texts, st.integers(), st.booleans())
contexts = st.dictionaries(texts, values, min_size=1, max_size=8)
origins = st.one_of(
    st.fixed_dictionaries({"receivers": st.frozensets(eight_bytes, max_size=5), "hops": st.integers(0, 255)}),
    with_a_claim(5),
)
stamps = st.builds(
    lambda origin, **fixed: Stamp(**fixed, **origin),
    origins,
    group=texts,
    call=st.sampled_from(Call),
    token=st.binary(min_size=12, max_size=12).map(bson.ObjectId),
    key=eight_bytes,
    context=contexts.map(lambda one: json.dumps(one, ensure_ascii=False, separators=(",", ":"))),
)


def entered() -> dict[str, Any] | None:
    """The values of the context in this task."""
    found = current_context()
    return None if found is None else dict(found.values)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """`mongoz.stamps` of the last version without contexts."""
    path = earlier_source(tmp_path_factory.mktemp("earlier"), WITHOUT_CONTEXTS) / "mongoz" / "stamps.py"
    spec = importlib.util.spec_from_file_location("earlier_stamps", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@given(stamps)
def test_a_stamp_with_a_context_is_unchanged_after_a_round_trip(stamp: Stamp) -> None:
    stored = bson.decode(bson.encode({"_mongoz": stamp.pack()}))["_mongoz"]
    assert isinstance(stored, bson.Binary)
    assert Stamp.unpack(stored) == stamp


@given(stamps)
def test_an_earlier_version_reads_a_stamp_but_not_its_context(earlier: ModuleType, stamp: Stamp) -> None:
    """That version fires the signal of the call, skips receivers that ran in process, and takes claims over."""
    found = earlier.Stamp.unpack(bytes(stamp.pack()))
    assert found[:4] == stamp[:4]
    assert (found.claim, found.muted) == (stamp.claim, False)
    assert stamp.receivers <= found.receivers  # the other ids are random: no receiver has them


@given(stamps, contexts)
def test_a_stamp_of_an_earlier_version_has_no_context(earlier: ModuleType, stamp: Stamp, context: dict) -> None:
    claim = None if stamp.claim is None else earlier.Claim(*stamp.claim)
    hops = 0 if stamp.receivers else stamp.hops
    older = earlier.Stamp(*stamp[:4], stamp.receivers, False, hops, claim)
    found = Stamp.unpack(bytes(older.pack()))
    assert found == stamp._replace(hops=hops, context="")


@given(stamps, st.data())
def test_unpacking_a_damaged_stamp_gives_a_stamp_or_none(stamp: Stamp, data: st.DataObject) -> None:
    packed = bytearray(stamp.pack())
    packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    for value in (bytes(packed), bytes(packed[: data.draw(st.integers(0, len(packed)))])):
        found = Stamp.unpack(value)
        assert found is None or not found.context or context_of(found.context) is not None


@given(stamps)
def test_a_value_that_a_client_chooses_can_not_name_a_receiver(stamp: Stamp) -> None:
    """An earlier version reads each eight bytes of a context as the id of a receiver."""
    twice = [bytes(stamp.pack()) for _ in range(2)]
    text = stamp.context.encode()
    assert twice[0] != twice[1]
    assert len(text) < 8 or not any(text in one for one in twice)


@pytest.mark.parametrize(
    "text", ["", "[]", "1", "{", '{"a":null}', '{"a":1.5}', '{"a":NaN}', '{"a":[1]}', '{"a":{}}', "[" * 60_000]
)
def test_anything_else_than_a_flat_object_is_no_context(text: str) -> None:
    assert context_of(text) is None
    stamp = Stamp("g", Call.SAVED, bson.ObjectId(), b"k" * 8, context='{"a":1}').pack()
    assert Stamp.unpack(stamp) is not None
    forged = Stamp("g", Call.SAVED, bson.ObjectId(), b"k" * 8, context=text).pack()
    assert text == "" or Stamp.unpack(forged) is None


def test_a_muted_stamp_has_no_context() -> None:
    stamp = Stamp("g", Call.SAVED, bson.ObjectId(), b"k" * 8, muted=True)
    assert Stamp.unpack(stamp._replace(context='{"a":1}').pack()) == stamp


@given(contexts)
def test_a_context_has_its_values_or_is_refused_as_too_long(given: dict[str, Any]) -> None:
    size = len(json.dumps(given, ensure_ascii=False, separators=(",", ":")).encode())
    if size <= 1024:
        with mongoz.context(**given):
            assert entered() == given
            assert [type(value) for value in (entered() or {}).values()] == [type(one) for one in given.values()]
    else:
        with (
            pytest.raises(ValueError, match=r"at most 1,024 bytes as JSON, and these have"),
            mongoz.context(**given),
        ):
            pass
    assert entered() is None


def test_the_limit_applies_to_the_values_of_all_blocks_together() -> None:
    with mongoz.context(a="x" * 1000):
        with pytest.raises(ValueError, match="'a' is 'xxx") as raised, mongoz.context(user="ada", note="y" * 20):
            raise AssertionError
        assert entered() == {"a": "x" * 1000}
    assert str(raised.value) == (
        f"mongoz.context(): 'a' is '{'x' * 56}.... All values, also those of outer blocks, may have at most "
        "1,024 bytes as JSON, and these have 1,051: 'a', 'user', 'note'. Shorten this value, or pass an id "
        "instead of the content."
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1.5, "'amount' is 1.5. A context takes str, int and bool only, and this is float. Pass str(...)"),
        (None, "'amount' is None. A context takes str, int and bool only, and this is NoneType"),
        (["a"], "'amount' is ['a']. A context takes str, int and bool only, and this is list"),
        (b"a", "'amount' is b'a'. A context takes str, int and bool only, and this is bytes"),
        ("\ud800", "'amount' is '\\ud800'. The text has half of a surrogate pair, which UTF-8 can't encode"),
        (10**2000, "'amount' is 10000"),
        pytest.param(10**5000, "'amount' is an int with thousands of digits. All values", id="enormous"),
    ],
)
def test_a_value_that_no_stamp_can_carry_is_refused_at_the_block(value: Any, message: str) -> None:
    with mongoz.context(user="ada"):
        with pytest.raises(ValueError) as raised, mongoz.context(amount=value):  # noqa: PT011 - checked below
            raise AssertionError
        assert str(raised.value).startswith(f"mongoz.context(): {message}")
        assert entered() == {"user": "ada"}


def test_blocks_merge_and_the_inner_value_wins() -> None:
    with mongoz.context(user="ada", source="web"):
        with mongoz.context(user="bob", job=7, dry=True):
            assert entered() == {"user": "bob", "source": "web", "job": 7, "dry": True}
        assert entered() == {"user": "ada", "source": "web"}
    assert entered() is None


def test_members_of_enums_become_their_values() -> None:
    class Source(enum.StrEnum):
        WEB = "web"

    class Level(enum.IntEnum):
        HIGH = 3

    with mongoz.context(source=Source.WEB, level=Level.HIGH):
        found = current_context()
    assert found is not None
    assert found.text == '{"source":"web","level":3}'
    assert {type(value) for value in found.values.values()} == {str, int}


def test_the_values_are_read_only() -> None:
    with mongoz.context(user="ada"):
        found: Any = current_context()
    with pytest.raises(TypeError):
        found.values["user"] = "bob"


async def test_a_context_is_local_to_its_task_and_to_tasks_that_it_starts() -> None:
    entered_both = asyncio.Barrier(2)

    async def work(user: str) -> tuple[Any, Any]:
        with mongoz.context(user=user):
            await entered_both.wait()
            return entered(), await asyncio.create_task(child())

    async def child() -> Any:
        return entered()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work(user)) for user in ("ada", "bob")]
    assert [task.result() for task in tasks] == [({"user": user},) * 2 for user in ("ada", "bob")]
    assert entered() is None


def test_the_current_span_is_part_of_each_context_and_makes_no_context_alone() -> None:
    span = NonRecordingSpan(SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1)))
    parent = f"00-{'abc':0>32}-{'def':0>16}-01"
    with trace.use_span(span):
        assert entered() is None
        with mongoz.context(user="ada", traceparent="from elsewhere"):
            assert entered() == {"user": "ada", "traceparent": parent}
        with mongoz.context():
            assert entered() == {"traceparent": parent}
    with mongoz.context(traceparent="from elsewhere"):
        assert entered() == {"traceparent": "from elsewhere"}
    with mongoz.context():
        assert entered() is None
