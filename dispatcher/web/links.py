"""Makes links to dashboards with their tokens. `demo` and `dev` make the tokens of their dispatchers."""

import secrets
import socket
from contextlib import closing
from typing import Final, NamedTuple
from urllib.parse import quote

from dispatcher.settings import AUTO, OFF, Address

# The preferred address of `--http auto`.
_USUAL: Final = Address("127.0.0.1", 8787)


class Shown(NamedTuple):
    """The address at which a dispatcher will answer HTTP, and the link to its dashboard.

    Attributes:
        http: the address, as for `--http`.
        url: the URL of the dashboard; None if there is no dashboard, or if the dispatcher chooses the port.
    """

    http: str
    url: str | None


def new_token() -> str:
    """A random token."""
    return secrets.token_urlsafe(24)


def link_to(address: str, token: str) -> str:
    """A link that opens the dashboard unlocked. The token comes after the #; browsers do not send this part.

    Args:
        address: the URL of the dispatcher, as `http://host:port`.
    """
    return f"{address}/dashboard/#token={quote(token, safe='')}"


def place_for(http: str, token: str) -> Shown:
    """Choose an address that a dispatcher keeps across restarts.

    Args:
        http: the user's setting, as for `--http`.
    """
    if http == OFF:
        return Shown(http, None)
    address = _free(_USUAL) if http == AUTO else Address.parse(http)
    if not address.port:
        return Shown(http, None)
    where = f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}"
    return Shown(where, link_to(f"http://{where}", token))


def _free(address: Address) -> Address:
    """Return this address. If its port is in use, return a free port of the same host."""
    for port in (address.port, 0):
        with closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address.host, port))
            except OSError:
                continue
            return Address(*probe.getsockname())
    return address._replace(port=0)
