"""Links to the dashboard of a dispatcher that we start ourselves, with a token that we choose."""

import secrets
import socket
from contextlib import closing
from typing import Final, NamedTuple
from urllib.parse import quote

from dispatcher.settings import AUTO, OFF, Address

__all__ = ["Shown", "link_to", "new_token", "place_for"]

# Where `--http auto` listens, if it can.
_USUAL: Final = Address("127.0.0.1", 8787)


class Shown(NamedTuple):
    """Where a dispatcher is to listen.

    Attributes:
        url: of its dashboard; None if it has none, or if it chooses the port.
    """

    http: str
    url: str | None


def new_token() -> str:
    """One that nobody guesses."""
    return secrets.token_urlsafe(24)


def link_to(address: str, token: str) -> str:
    """A link that opens the dashboard unlocked. Browsers send nobody what is behind the #.

    Args:
        address: of the dispatcher, as `http://host:port`.
    """
    return f"{address}/dashboard/#token={quote(token, safe='')}"


def place_for(http: str, token: str) -> Shown:
    """Where a dispatcher that is started again and again is to listen: always at the same port.

    Args:
        http: what its user wants, as for `--http`.
    """
    if http == OFF:
        return Shown(http, None)
    address = _free(_USUAL) if http == AUTO else Address.parse(http)
    if not address.port:
        return Shown(http, None)
    where = f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}"
    return Shown(where, link_to(f"http://{where}", token))


def _free(address: Address) -> Address:
    """This address, or the same with a free port if something listens there."""
    for port in (address.port, 0):
        with closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address.host, port))
            except OSError:
                continue
            return Address(*probe.getsockname())
    return address._replace(port=0)
