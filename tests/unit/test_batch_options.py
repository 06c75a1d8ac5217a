"""The option `batch`, and the exception for events that failed."""

import pickle
from typing import Any

import pytest

import mongoz
from dispatcher.delivery.application import routes_of
from dispatcher.exceptions import ApplicationError
from dispatcher.settings import Settings
from mongoz import Batch, BatchError, SignalError
from mongoz.core.signals import post_save, post_update


@pytest.fixture
def product() -> Any:
    registry = mongoz.Registry("mongodb://nowhere.example/", dispatched="shop")

    class Product(mongoz.Document):
        name: str = mongoz.String()

        class Meta:
            abstract = False

        Meta.registry = registry  # type: ignore[attr-defined]
        Meta.database = "shop"  # type: ignore[attr-defined]

    return Product


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "many"])
def test_a_size_is_a_positive_integer(size):
    with pytest.raises(SignalError, match="size="):
        Batch(size=size)


@pytest.mark.parametrize("wait", [-1, float("inf"), float("nan"), True, "long"])
def test_a_wait_is_a_number_of_seconds(wait):
    with pytest.raises(SignalError, match="wait="):
        Batch(wait=wait)
    assert Batch(wait=0).size == 500


def test_a_batch_receiver_runs_in_the_dispatcher_only(product):
    @post_save(product, name="index", batch=Batch())
    async def index(sender, batch, **kwargs): ...

    (receiver,) = product.signals.post_save.receivers
    assert receiver.delivery == "dispatcher"
    assert product.signals.post_save.in_process == ()
    with pytest.raises(SignalError, match=r"batch= of .* implies delivery='dispatcher'"):
        post_save(product, name="other", batch=Batch(), delivery="any")(_receive)


async def _receive(sender: Any, **kwargs: Any) -> None: ...


@pytest.mark.parametrize("wrong", [500, {"size": 500}, True])
def test_the_value_of_the_option_batch_must_be_a_batch_object(product, wrong):
    with pytest.raises(SignalError, match="must be a Batch"):
        post_save(product, name="index", batch=wrong)(_receive)


def test_a_batch_receiver_gets_no_instance_and_another_receiver_gets_no_batch(product):
    async def single(sender, instance, **kwargs): ...

    async def batched(sender, batch, **kwargs): ...

    with pytest.raises(SignalError, match="requires 'instance', which a batch of post_save does not send"):
        post_save(product, name="single", batch=Batch())(single)
    with pytest.raises(SignalError, match="requires 'batch', which post_save does not send"):
        post_save(product, name="batched")(batched)


async def test_send_does_not_call_batch_receivers(product):
    called: list[str] = []

    @post_save(product, name="index", batch=Batch())
    async def index(sender, batch, **kwargs):
        called.append("index")

    @post_save(product, name="plain")
    async def plain(sender, instance, **kwargs):
        called.append("plain")

    await product.signals.post_save.send(product, instance=None)
    await product.signals.post_save.send_robust(product, instance=None)
    assert called == ["plain", "plain"]


def test_receivers_of_one_name_must_have_the_same_batch_option(product):
    post_save(product, name="index", batch=Batch(size=5))(_receive)
    post_update(product, name="index", batch=Batch(size=6))(_receive)
    with pytest.raises(ApplicationError, match="Product has two receivers 'index'"):
        routes_of(product.meta.registry, Settings(), "shop")
    product.signals.post_update.disconnect(_receive)
    post_update(product, name="index", batch=Batch(size=5), fields="name")(_receive)
    assert routes_of(product.meta.registry, Settings(), "shop").listeners


@pytest.mark.parametrize(
    "wrong", [{}, None, [0], {"a": ValueError()}, {-1: ValueError()}, {0: "text"}, {True: ValueError()}]
)
def test_a_batch_error_needs_an_exception_for_each_failed_event(wrong):
    with pytest.raises(SignalError, match="BatchError"):
        BatchError(wrong)


def test_a_batch_error_keeps_the_errors():
    error = BatchError({2: ValueError("bad"), 5: KeyError("x")})
    assert list(error.errors) == [2, 5]
    assert str(error) == "2 events of the batch failed; event 2: ValueError('bad')"
    copied = pickle.loads(pickle.dumps(error))
    assert list(copied.errors) == [2, 5]
