"""Reads parts and options of MongoDB URLs. No I/O. Messages never contain credentials."""

import re
from collections.abc import Collection
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

from bson.codec_options import DatetimeConversion
from pymongo.errors import ConfigurationError, InvalidURI
from pymongo.uri_parser import parse_uri

from mongoz.exceptions import ImproperlyConfigured

__all__ = ["Seed", "decoding_options", "first_seed", "has_retryable_writes", "named_options", "without_options"]

# Valid values of unicode_decode_error_handler.
_UNICODE_HANDLERS: Final = ("strict", "replace", "backslashreplace", "surrogateescape", "ignore")


class Seed(NamedTuple):
    """The first server in a URL."""

    host: str
    port: int | None


_SRV: Final = "mongodb+srv://"
_SRV_OPTIONS: Final = frozenset({"srvservicename", "srvmaxhosts", "srvallowedhostssuffix"})
_UNKNOWN_OPTION: Final = "Unknown option"


def first_seed(url: str) -> Seed:
    """The first seed of a MongoDB URL; a `mongodb+srv` name has no port.

    Raises:
        ImproperlyConfigured: the URL does not parse. The message never contains credentials.
    """
    is_name = url.startswith(_SRV)
    # parse_uri would ask a name server, so it gets the name as a plain host.
    plain = without_options(f"mongodb://{url.removeprefix(_SRV)}", _SRV_OPTIONS) if is_name else url
    try:
        node = parse_uri(plain)["nodelist"][0]
    except (InvalidURI, ConfigurationError, ValueError) as error:
        raise ImproperlyConfigured(
            f"The MongoDB URL {_without_credentials(url)!r} does not parse: {_reason(error, url)}. "
            "Write it like 'mongodb://user:password@host:27017/?replicaSet=rs0'."
        ) from None
    return Seed(node[0], None if is_name else node[1])


def decoding_options(url: str) -> dict[str, Any]:
    """The options of a URL that control decoding, as codec options.

    `tz_aware=true` gives aware datetimes. `datetime_conversion=DATETIME_AUTO` gives a `bson.DatetimeMS` for dates
    that Python does not have. `unicode_decode_error_handler=replace` gives a replacement character for invalid
    UTF-8.

    Raises:
        ImproperlyConfigured: an option has an invalid value. The message lists the valid values.
    """
    named = named_options(url)
    options: dict[str, Any] = {"tz_aware": _option(url, "tz_aware", "false") == "true"}
    handler = "unicode_decode_error_handler"
    if handler in named:
        options[handler] = _one_of(handler, named[handler], _UNICODE_HANDLERS)
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
    raise ImproperlyConfigured(f"{option}={value!r} in the MongoDB URL is invalid; valid are {', '.join(known)}.")


def has_retryable_writes(url: str) -> bool:
    """Whether writes are retryable: always, unless the URL says `retryWrites=false`."""
    return _option(url, "retrywrites", "true") != "false"


def named_options(url: str) -> dict[str, str]:
    """The options of a URL, by their names in lower case."""
    return {key.lower(): value for key, value in parse_qsl(url.partition("?")[2])}


def without_options(url: str, names: Collection[str]) -> str:
    """A URL without some of its options.

    Args:
        url: a valid URL.
        names: the options to remove, in lower case.
    """
    address, mark, query = url.partition("?")
    kept = [pair for pair in re.split("[&;]", query) if pair.partition("=")[0].lower() not in names]
    return f"{address}{mark if any(kept) else ''}{'&'.join(kept)}"


def _option(url: str, name: str, default: str) -> str:
    return named_options(url).get(name, default).lower()


def _without_credentials(url: str) -> str:
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    _, at, place = rest.rpartition("@")
    # Options may contain passwords too, for example of certificate files.
    place, mark, _ = place.partition("?")
    return f"{scheme}{separator}{'...@' if at else ''}{place}{'?...' if mark else ''}"


def _reason(error: Exception, url: str) -> str:
    # Some messages of PyMongo quote the credentials after a colon.
    message, _, quoted = str(error).partition(":")
    # An "@" after the "?" can mean that the password contains the "?". Then PyMongo takes a part of the password
    # for the name of an option, and quotes it.
    if message == _UNKNOWN_OPTION and "@" not in url.partition("?")[2]:
        return f"{message} {quoted.partition('.')[0].strip()!r}"
    return message.rstrip(". ")
