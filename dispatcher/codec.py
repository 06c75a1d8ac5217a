"""How change events and documents are decoded."""

from typing import Any, Final

from bson.codec_options import CodecOptions, DatetimeConversion
from bson.raw_bson import RawBSONDocument

__all__ = ["RAW", "lenient"]

RAW: Final[CodecOptions[RawBSONDocument]] = CodecOptions(document_class=RawBSONDocument)
"""Leave documents as they are: one that can't be decoded does not take the others with it."""


def lenient(codec_options: CodecOptions[Any]) -> CodecOptions[Any]:
    """These options, but nothing is refused: dates beyond Python's, and strings that are no UTF-8."""
    return codec_options.with_options(
        datetime_conversion=DatetimeConversion.DATETIME_AUTO, unicode_decode_error_handler="replace"
    )
