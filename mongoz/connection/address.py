"""Reading a MongoDB URL without any I/O, and naming it without its password."""

from contextlib import suppress
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

from pymongo.errors import ConfigurationError, InvalidURI
from pymongo.uri_parser import parse_uri

from mongoz.exceptions import ImproperlyConfigured

__all__ = ["Seed", "first_seed", "named_options", "wants_retries", "wants_time_zones"]


class Seed(NamedTuple):
    """The first server that a URL names."""

    host: str
    port: int | None


def first_seed(url: str) -> Seed:
    """The first seed of a MongoDB URL; a `mongodb+srv` name has no port of its own.

    Raises:
        ImproperlyConfigured: the URL does not parse. The message never contains credentials.
    """
    if url.startswith("mongodb+srv://"):
        host = None
        with suppress(ValueError):  # brackets that do not match
            host = urlsplit(url).hostname  # parse_uri would ask a name server
        if host:
            return Seed(host, None)
        raise ImproperlyConfigured("The MongoDB URL 'mongodb+srv://...' names no host.")
    try:
        node = parse_uri(url)["nodelist"][0]
    except (InvalidURI, ConfigurationError, ValueError) as error:
        raise ImproperlyConfigured(
            f"The MongoDB URL {_without_credentials(url)!r} does not parse: {_first_sentence(error)}. "
            "Write it like 'mongodb://user:password@host:27017/?replicaSet=rs0'."
        ) from None
    return Seed(node[0], node[1])


def wants_time_zones(url: str) -> bool:
    """Whether a URL asks for aware datetimes (`tz_aware=true`)."""
    return _option(url, "tz_aware", "false") == "true"


def wants_retries(url: str) -> bool:
    """Whether writes are to be retryable, as they are unless a URL says `retryWrites=false`."""
    return _option(url, "retrywrites", "true") != "false"


def named_options(url: str) -> dict[str, str]:
    """The options that a URL has, by their names in lower case."""
    return {key.lower(): value for key, value in parse_qsl(url.partition("?")[2])}


def _option(url: str, name: str, default: str) -> str:
    return named_options(url).get(name, default).lower()


def _without_credentials(url: str) -> str:
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    _, at, place = rest.rpartition("@")
    # Options may hold passwords too, of certificate files for example.
    place, mark, _ = place.partition("?")
    return f"{scheme}{separator}{'...@' if at else ''}{place}{'?...' if mark else ''}"


def _first_sentence(error: Exception) -> str:
    # PyMongo quotes the whole user part in some of its messages, after a colon.
    return str(error).partition(":")[0].rstrip(". ")
