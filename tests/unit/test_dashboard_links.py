"""Where a dispatcher of our own is to listen, and the link to its dashboard."""

import socket

import pytest

from dispatcher.web.links import link_to, new_token, place_for


def test_a_link_has_the_token_where_no_server_sees_it():
    assert link_to("http://127.0.0.1:1", "a/b#c") == "http://127.0.0.1:1/dashboard/#token=a%2Fb%23c"


def test_tokens_differ_and_are_long_enough_for_the_setting():
    assert len({new_token() for _ in range(9)}) == 9
    assert len(new_token()) >= 16


@pytest.mark.parametrize(
    ("http", "where"), [("127.0.0.1:1234", "127.0.0.1:1234"), (":1234", "127.0.0.1:1234"), ("[::1]:9", "[::1]:9")]
)
def test_who_says_where_gets_it(http, where):
    assert place_for(http, "t") == (where, f"http://{where}/dashboard/#token=t")


def test_no_link_where_nothing_listens_or_nobody_knows_where():
    assert place_for("off", "t") == ("off", None)
    assert place_for("127.0.0.1:0", "t") == ("127.0.0.1:0", None)


def test_a_port_that_is_taken_is_not_chosen():
    first = place_for("auto", "t")
    host, port = first.http.split(":")
    with socket.create_server((host, int(port))):
        second = place_for("auto", "t")
    assert second.http != first.http
    assert second.url is not None
