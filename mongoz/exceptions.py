"""Every error mongoz raises on purpose.

    MongozException
    ├── DocumentNotFound            a read or write whose document is not there
    ├── MultipleDocumentsReturned   get() matched more than one
    ├── FieldDefinitionError        a field was declared with arguments that contradict each other
    ├── ImproperlyConfigured        a registry or document was put together wrongly
    ├── InvalidKeyError             a name or an id that means nothing for this document
    ├── InvalidObjectIdError        a string that is no ObjectId
    ├── SignalError                 a receiver or a signal that could never work
    ├── AbstractDocumentError       an operation on a document that has no collection
    ├── OperatorInvalid             a lookup that does not exist
    ├── IndexError                  indexes that contradict each other
    ├── TransactionError            a transaction inside a transaction, or on a server that has none
    └── WriteConflict               a document that others change faster than it can be read and written

The driver's own errors (DuplicateKeyError, ServerSelectionTimeoutError, ...) pass unwrapped, and so do
pydantic's ValidationErrors.
"""

__all__ = [
    "AbstractDocumentError",
    "DocumentNotFound",
    "FieldDefinitionError",
    "ImproperlyConfigured",
    "IndexError",
    "InvalidKeyError",
    "InvalidObjectIdError",
    "MongozException",
    "MultipleDocumentsReturned",
    "OperatorInvalid",
    "SignalError",
    "TransactionError",
    "WriteConflict",
]


class MongozException(Exception):
    """Something went wrong in mongoz."""

    def __init__(self, *args: object, detail: str = "") -> None:
        """Keep the arguments as they are, as every exception does; the detail comes last among them.

        Args:
            *args: what went wrong.
            detail: more about it.
        """
        super().__init__(*args, *((detail,) if detail else ()))
        self.detail = detail or (str(args[0]) if args else self.__doc__ or "")

    def __str__(self) -> str:
        return " ".join(text for arg in self.args if arg is not None and (text := str(arg))) or self.detail


class DocumentNotFound(MongozException):
    """No document matches."""


class MultipleDocumentsReturned(MongozException):
    """More than one document matches."""


class FieldDefinitionError(MongozException):
    """The arguments of a field contradict each other."""


class ImproperlyConfigured(MongozException):
    """A registry or a document is not put together correctly."""


class InvalidKeyError(MongozException):
    """This name or id means nothing for this document."""


class InvalidObjectIdError(MongozException):
    """Not a valid ObjectId."""


class SignalError(MongozException):
    """This receiver or signal can not work."""


class AbstractDocumentError(MongozException):
    """An abstract document has no collection to work on."""


class OperatorInvalid(MongozException):
    """There is no such lookup."""


class IndexError(MongozException):
    """Indexes of a document contradict each other. Not in `mongoz.__all__`: it would hide the built-in one."""


class TransactionError(MongozException):
    """This transaction can not be."""


class WriteConflict(MongozException):
    """A document changes faster than it can be read, validated and written."""
