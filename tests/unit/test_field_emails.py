"""The fast check of e-mail addresses has the result of the full validation."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from pydantic.networks import validate_email
from pydantic_core import PydanticCustomError

from mongoz.fields.email import EmailRule

LOCALS = st.one_of(
    st.text("abz09_+-.", max_size=8),
    st.text("aZé.@ <>\"'\n\\%_", max_size=8),
    st.sampled_from(["a" * 64, "a" * 65, "a." * 32 + "a", ".a", "a.", "a..b", "-", "+", '"a b"', "A", "ﬁ"]),
)
DOMAINS = st.one_of(
    st.sampled_from(
        ["example.org", "example.com", "Example.org", "example.org.", ".example.org", "b\u00fccher.example"]
    ),
    st.sampled_from(
        ["localhost", "test", "a.test", "[127.0.0.1]", "127.0.0.1", "xn--bcher-kva.example", "a.b", "a.1"]
    ),
    st.sampled_from(
        ["a" * 63 + ".org", "a" * 64 + ".org", ".".join(["a" * 60] * 4), "x@example.org", "example.org\n"]
    ),
    st.text("ab0-.@ é", max_size=8),
)


def full(value: str) -> Any:
    try:
        return validate_email(value)[1]
    except PydanticCustomError:
        return "refused"


def checked(value: str) -> Any:
    try:
        return ADDRESS.validate_python(value)
    except ValueError:
        return "refused"


class Address(str):
    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return EmailRule().__get_pydantic_core_schema__(source, lambda _: handler(str))


ADDRESS = TypeAdapter(Address)


@given(LOCALS, DOMAINS)
@example("a", "a" * 63 + "." + "a" * 63 + "." + "a" * 63 + "." + "a" * 58 + ".org")
@example("a" * 64, ".".join(["a" * 60] * 3 + ["org"]))
def test_an_address_has_the_result_of_full_validation(local, domain):
    for value in (f"{local}@{domain}", f" {local}@{domain}", f"Ada <{local}@{domain}>", local):
        assert checked(value) == full(value)


@pytest.mark.parametrize("value", ["ada.lovelace+x_1-2@example.org", "a@example.org"])
def test_a_plain_address_is_not_validated_in_full(value, monkeypatch):
    assert checked(value) == value

    def fail(_: str) -> None:
        raise AssertionError("full validation")

    monkeypatch.setattr("mongoz.fields.email.validate_email", fail)
    assert checked(f"x{value}") == f"x{value}"
