"""Secrets and control characters are removed from texts in linear time."""

import time
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.redaction import escaped, names_a_secret, redacted, shortened

SECRETS = [
    "mongodb://me:hunter2@host/",
    "mongodb+srv://me:hunter2@host/?retryWrites=true",
    "could not connect to 'mongodb://me:se/cr:hunter2@host:27017/shop'",
    "mongodb://me:pass@word:hunter2@host",
    "mongodb://me:pass hunter2@host/db",
    'mongodb://me:pass"hunter2@host/db',
    "mongodb://me:pass'hunter2@host/db is gone",
    "mongodb://me:p@ss hunter2@host/db",
    "mongodb://me:a://hunter2@host/db",
    "https://hunter2@host/repository.git",
    "redis://:hunter2@host:6379/0",
    "http://host:8080 and mongodb://me:hunter2@host",
    "mongodb://host/?tls=true&tlsCertificateKeyFilePassword=hunter2&w=1",
    "mongodb://host/?authMechanismProperties=AWS_SESSION_TOKEN:hunter2",
    "GET https://host/v1?api_key=hunter2&page=2",
    "GET https://host/v1?page=2&apikey=hunter2",
    "https://host/maps?key=hunter2",
    "https://host/?access_token=hunter2#x",
    "https://host/o?X-Amz-Credential=hunter2/2026&X-Amz-Signature=hunter2&X-Amz-Security-Token=hunter2",
    "https://host/o?AWSAccessKeyId=hunter2&Signature=hunter2%3D&Expires=1",
    "https://host/blob?sv=2026&sig=hunter2",
    "host said: token=hunter2",
    "host said: token = hunter2",
    "host: Authorization: Bearer hunter2",
    "host: Authorization: Basic hunter2==",
    'host: curl -H "authorization: Token hunter2"',
    'host: Authorization: Digest username="me", response="hunter2"',
    "host: {'Authorization': 'Bearer hunter2'}",
    "host: [(b'authorization', b'Bearer hunter2'), (b'accept', b'*/*')]",
    "host: Proxy-Authorization: hunter2",
    "host: Cookie: a=hunter2; b=hunter2",
    "host: X-Api-Key: hunter2",
    "host=db password=hunter2 user=me",
    "host=db password='hun ter2 hunter2' user=me",
    'host=db password="it\'s hunter2" user=me',
    "host=db password=pass hunter2",
    "Server=host;Pwd=hunter2;Database=x",
    'host: {"password": "hunter2", "n": 1}',
    'host: {"password":"a\\"hunter2","n":1}',
    "host: {'client_secret': 'hunter2', 'n': 1}",
    r'host: "{\"password\": \"hunter2\", \"n\": 1}"',
    "host: User(name='me', password='hunter2')",
    "host: config['secret_key'] = 'hunter2'",
    "host: <password>hunter2</password>",
    "host: DB_PASSWORD=hunter2",
    "host: AccountKey=hunter2;EndpointSuffix=x",
    "host: auth=('me', 'hunter2')",
    "host: mongosh --password hunter2 --quiet",
    "host: ['mongosh', '--password', 'hunter2']",
    "host: mongosh --password=hunter2",
    "host: 1 validation error for User\npassword\n  Too short [type=x, input_value='hunter2', input_type=str]",
    "host: -----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----",
    "host: -----BEGIN PRIVATE KEY-----\nhunter2",
    "host: Bearer hunter2.hunter2",
    "host: eyJhbGciOiJIUzI1NiJ9.eyJuIjoiaHVudGVyMiJ9.hunter2",
]

HARMLESS = [
    "",
    "a@b.example",
    "https://example.org/path?x=1",
    "http://127.0.0.1:8080/ and me@home",
    "mongodb://a:27017,b:27018/?replicaSet=rs0",
    "mongodb://user:password@host:27017/?replicaSet=rs0",
    "KeyError: 'password'",
    "the token 8266 and me@home",
    "if password == stored:",
    "E11000 duplicate key error collection: shop.orders index: _id_ dup key: { _id: 5 }",
    "not authorized on shop to execute command { find: 'orders' }",
    "expected a Bearer token",
    "monkey=1 keyboard: 2 author=me compass=north",
]


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_are_replaced_and_the_rest_stays(text):
    assert "hunter2" not in redacted(text)
    assert "host" in redacted(text)
    assert "..." in redacted(text)


@pytest.mark.parametrize("text", HARMLESS)
def test_a_text_without_a_secret_is_unchanged(text):
    assert redacted(text) == text


@pytest.mark.parametrize("text", SECRETS)
def test_a_redacted_text_is_unchanged(text):
    assert redacted(redacted(text)) == redacted(text)


@given(st.text(), st.text(alphabet="abc /?:@#\"' ", max_size=20))
def test_any_text_can_be_redacted(before, password):
    redacted(f"{before}\nmongodb://me:x{password}@host password={password}")


@pytest.mark.parametrize("name", ["password", "DB_PASSWORD", "apiKey", "access_token", "Authorization", "secret"])
def test_names_of_secrets_are_recognized(name):
    assert names_a_secret(name)
    assert not names_a_secret("receiver")


UNITS = [
    *("a://", "://a:", "a://b:c d ", "a://b:c@", 'a://b:"', "@", "x:y@", "a://b@ "),
    *(
        "token",
        "token=",
        'token="',
        "password='x'y",
        'password=\\"',
        "password=a b ",
        "password=(",
        "pass_",
        "pass\n",
    ),
    *("eyJ", "eyJabcdefgh.", "--", "--password ", "Bearer ", "-----BEGIN PRIVATE KEY-----", "authorization: "),
    *("?key=", "&sig", "password\n input_value=", "\\", "\x1b", "\n", " ", "x"),
]


def cost(work: Callable[[str], object], text: str) -> float:
    """CPU time of this thread."""
    began = time.thread_time()
    work(text)
    return time.thread_time() - began


@pytest.mark.parametrize("work", [redacted, shortened, escaped])
@pytest.mark.parametrize("before", ["", "mongodb://me:x", "password="])
@pytest.mark.parametrize("unit", UNITS)
def test_the_time_is_linear_in_the_length(unit, before, work):
    short, long = (before + unit * (length // len(unit)) for length in (10_000, 80_000))
    # For eight times the length, a linear cost grows to 8 times, a quadratic cost to 64 times. Other load of the
    # machine can only make the measured cost too high. So one good measurement of ten is enough.
    assert any(cost(work, long) < 24 * cost(work, short) + 0.002 for _ in range(10))


def test_a_long_text_keeps_both_ends():
    assert shortened("x" * 50) == "x" * 50
    text = shortened("begin " + "word " * 10_000 + "end", 1_000)
    assert text.startswith("begin word")
    assert text.endswith("word end")
    assert " [...] " in text
    assert len(text) < 1_010


@pytest.mark.parametrize("at", range(-30, 30))
def test_a_truncation_leaves_no_part_of_a_secret(at):
    secret = "mongodb://me:hunter2hunter2@host"
    for place in (500, 9_500):
        text = "w " * (place // 2) + "w" * (30 + at) + " " + secret + " w" * 5_000
        assert "hunt" not in redacted(shortened(text[: 10_000 + at], 1_000))


@given(st.text())
def test_an_escaped_text_moves_no_cursor(text):
    shown = escaped(text)
    assert not [one for one in shown if unicodedata.category(one) in {"Cc", "Cs", "Zl", "Zp"}]
    assert not [one for one in shown if unicodedata.bidirectional(one) in BIDIRECTIONAL_CONTROLS]
    assert escaped(shown) == shown


BIDIRECTIONAL_CONTROLS = {"LRE", "LRO", "RLE", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;x\x07\x1b[2J", r"\x1b]0;x\x07\x1b[2J"),
        ("a\nb\tc\rd\x00\x7f\x9b", r"a\nb\tc\rd\x00\x7f\x9b"),
        ("\u202eabc\u2066\u200f\u2028", r"\u202eabc\u2066\u200f\u2028"),
        ("\ud800", r"\ud800"),
        ("Grüße, 你好 👩\u200d🚀 \\x1b", "Grüße, 你好 👩\u200d🚀 \\x1b"),
    ],
)
def test_control_characters_are_written_as_python_writes_them(text, shown):
    assert escaped(text) == shown


def test_lines_of_a_text_are_indented():
    assert escaped("a\nb\x1b", "\n  ") == "a\n  b\\x1b"
