"""Reading a MongoDB URL without any I/O, and naming it without its password."""

import re
from collections.abc import Collection
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

from bson.codec_options import DatetimeConversion
from pymongo.errors import ConfigurationError, InvalidURI
from pymongo.uri_parser import parse_uri

from mongoz.exceptions import ImproperlyConfigured

__all__ = ["Seed", "decoding", "first_seed", "named_options", "wants_retries", "without_options"]

# What the driver takes for unicode_decode_error_handler.
_HANDLERS: Final = ("strict", "replace", "backslashreplace", "surrogateescape", "ignore")


class Seed(NamedTuple):
    """The first server that a URL names."""

    host: str
    port: int | None


_SRV: Final = "mongodb+srv://"
_OF_NAMES: Final = frozenset({"srvservicename", "srvmaxhosts", "srvallowedhostssuffix"})
_UNKNOWN_OPTION: Final = "Unknown option"


def first_seed(url: str) -> Seed:
    """The first seed of a MongoDB URL; a `mongodb+srv` name has no port of its own.

    Raises:
        ImproperlyConfigured: the URL does not parse. The message never contains credentials.
    """
    is_name = url.startswith(_SRV)
    # A name is for a name server, which parse_uri would ask. The rest of such a URL is like any other.
    plain = without_options(f"mongodb://{url.removeprefix(_SRV)}", _OF_NAMES) if is_name else url
    try:
        node = parse_uri(plain)["nodelist"][0]
    except (InvalidURI, ConfigurationError, ValueError) as error:
        raise ImproperlyConfigured(
            f"The MongoDB URL {_without_credentials(url)!r} does not parse: {_reason(error, url)}. "
            "Write it like 'mongodb://user:password@host:27017/?replicaSet=rs0'."
        ) from None
    return Seed(node[0], None if is_name else node[1])


def decoding(url: str) -> dict[str, Any]:
    """What a URL says of how values are decoded, as codec options.

    `tz_aware=true` asks for aware datetimes, `datetime_conversion=DATETIME_AUTO` for a `bson.DatetimeMS` where a
    date is beyond Python's, `unicode_decode_error_handler=replace` for question marks where text is no UTF-8.

    Raises:
        ImproperlyConfigured: the driver does not know such a value; names those that it knows.
    """
    named = named_options(url)
    options: dict[str, Any] = {"tz_aware": _option(url, "tz_aware", "false") == "true"}
    handler = "unicode_decode_error_handler"
    if handler in named:
        options[handler] = _one_of(handler, named[handler], _HANDLERS)
    conversion = "datetime_conversion"
    if conversion in named:
        names = DatetimeConversion.__members__
        value = named[conversion]
        if value.isdecimal() and value in {str(one.value) for one in DatetimeConversion}:
            options[conversion] = DatetimeConversion(int(value))
        else:
            options[conversion] = names[_one_of(conversion, value, tuple(names))]
    return options


def _one_of(option: str, value: str, known: tuple[str, ...]) -> str:
    if value in known:
        return value
    raise ImproperlyConfigured(f"{option}={value!r} in the MongoDB URL is none of {', '.join(known)}.")


def wants_retries(url: str) -> bool:
    """Whether writes are to be retryable, as they are unless a URL says `retryWrites=false`."""
    return _option(url, "retrywrites", "true") != "false"


def named_options(url: str) -> dict[str, str]:
    """The options that a URL has, by their names in lower case."""
    return {key.lower(): value for key, value in parse_qsl(url.partition("?")[2])}


def without_options(url: str, names: Collection[str]) -> str:
    """A URL without some of its options.

    Args:
        url: one that parses.
        names: of the options, in lower case.
    """
    address, mark, query = url.partition("?")
    kept = [pair for pair in re.split("[&;]", query) if pair.partition("=")[0].lower() not in names]
    return f"{address}{mark if any(kept) else ''}{'&'.join(kept)}"


def _option(url: str, name: str, default: str) -> str:
    return named_options(url).get(name, default).lower()


def _without_credentials(url: str) -> str:
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    _, at, place = rest.rpartition("@")
    # Options may hold passwords too, of certificate files for example.
    place, mark, _ = place.partition("?")
    return f"{scheme}{separator}{'...@' if at else ''}{place}{'?...' if mark else ''}"


def _reason(error: Exception, url: str) -> str:
    # PyMongo quotes the whole user part in some of its messages, after a colon.
    what, _, which = str(error).partition(":")
    if what == _UNKNOWN_OPTION and "@" not in url.partition("?")[2]:  # else it may be a part of a password
        return f"{what} {which.partition('.')[0].strip()!r}"
    return what.rstrip(". ")
