"""The address of a local dispatcher, and the link to its dashboard."""

import socket

import pytest

from dispatcher.web.links import link_to, new_token, place_for


def test_a_link_has_the_token_in_its_fragment():
    assert link_to("http://127.0.0.1:1", "a/b#c") == "http://127.0.0.1:1/dashboard/#token=a%2Fb%23c"


def test_tokens_differ_and_are_long_enough_for_the_setting():
    assert len({new_token() for _ in range(9)}) == 9
    assert len(new_token()) >= 16


@pytest.mark.parametrize(
    ("http", "where"), [("127.0.0.1:1234", "127.0.0.1:1234"), (":1234", "127.0.0.1:1234"), ("[::1]:9", "[::1]:9")]
)
def test_a_given_address_is_used(http, where):
    assert place_for(http, "t") == (where, f"http://{where}/dashboard/#token=t")


def test_there_is_no_link_without_a_known_address():
    assert place_for("off", "t") == ("off", None)
    assert place_for("127.0.0.1:0", "t") == ("127.0.0.1:0", None)


def test_a_port_in_use_is_not_chosen():
    first = place_for("auto", "t")
    host, port = first.http.split(":")
    with socket.create_server((host, int(port))):
        second = place_for("auto", "t")
    assert second.http != first.http
    assert second.url is not None
