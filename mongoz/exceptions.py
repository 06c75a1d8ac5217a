"""The errors of mongoz.

    MongozException
    ├── DocumentNotFound            the document of a read or write does not exist
    ├── MultipleDocumentsReturned   get() matched several documents
    ├── FieldDefinitionError        a field is declared wrongly, or a call does not fit a field
    ├── ImproperlyConfigured        a registry or a document is defined wrongly
    ├── InvalidKeyError             the name of a field, index or option is invalid, or an id is malformed
    ├── InvalidObjectIdError        a string is no ObjectId
    ├── SignalError                 a receiver or a signal can't work
    ├── AbstractDocumentError       an operation needs a collection, and the document has none
    ├── OperatorInvalid             a lookup or an operator does not exist, or does not support a value
    ├── IndexError                  indexes contradict each other
    ├── TransactionError            transactions are nested, or the server does not support them
    ├── WriteConflict               other clients change a document faster than it can be read and written
    ├── RetryAfter                  raised by a receiver: a dispatcher calls the receiver again later
    └── BatchError                  raised by a batch receiver: only some events of its batch failed

The driver's own errors (DuplicateKeyError, ServerSelectionTimeoutError, ...) and pydantic's ValidationErrors are
not wrapped.
"""

import math
from collections.abc import Mapping

__all__ = [
    "AbstractDocumentError",
    "BatchError",
    "DocumentNotFound",
    "FieldDefinitionError",
    "ImproperlyConfigured",
    "IndexError",
    "InvalidKeyError",
    "InvalidObjectIdError",
    "MongozException",
    "MultipleDocumentsReturned",
    "OperatorInvalid",
    "RetryAfter",
    "SignalError",
    "TransactionError",
    "WriteConflict",
]


class MongozException(Exception):
    """An error of mongoz."""

    def __init__(self, *args: object, detail: str = "") -> None:
        """Keep the arguments; the detail becomes the last argument.

        Args:
            *args: the message.
            detail: a sentence that follows the message; "" adds none.
        """
        super().__init__(*args, *((detail,) if detail else ()))
        self.detail = detail or (str(args[0]) if args else self.__doc__ or "")

    def __str__(self) -> str:
        return " ".join(text for arg in self.args if arg is not None and (text := str(arg))) or self.detail


class DocumentNotFound(MongozException):
    """No document matches."""


class MultipleDocumentsReturned(MongozException):
    """Several documents match."""


class FieldDefinitionError(MongozException):
    """A field is declared wrongly, or a call does not fit a field."""


class ImproperlyConfigured(MongozException):
    """A registry or a document is not configured correctly."""


class InvalidKeyError(MongozException):
    """The name of a field, index or option is invalid, or an id is malformed."""


class InvalidObjectIdError(MongozException):
    """The value is not a valid ObjectId."""


class SignalError(MongozException):
    """This receiver or signal can't work."""


class AbstractDocumentError(MongozException):
    """An abstract document has no collection."""


class OperatorInvalid(MongozException):
    """There is no such lookup or operator, or it does not support this value."""


class IndexError(MongozException):
    """Indexes of a document contradict each other. Not in `mongoz.__all__`: it would hide Python's IndexError."""


class TransactionError(MongozException):
    """This transaction is not possible."""


class WriteConflict(MongozException):
    """A document changes faster than it can be read, validated and written."""


class RetryAfter(MongozException):
    """Raised by a `post_*` receiver to ask a dispatcher for another attempt after some time.

    The attempt is not counted: `delivery.attempt` stays the same. Meanwhile, later deliveries of the document to
    this receiver wait. In process there is no other attempt, and the exception reaches the caller of the write.

    Args:
        seconds: the time until the next attempt, positive and finite. A dispatcher waits a day at most.

    Raises:
        SignalError: the time is not a positive, finite number.

    Examples:
        >>> if response.status_code == 429:
        ...     raise mongoz.RetryAfter(float(response.headers["Retry-After"]))
    """

    def __init__(self, seconds: float) -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
            raise SignalError(f"RetryAfter({seconds!r}) must be a positive, finite number of seconds.")
        super().__init__(seconds)
        self.seconds = float(seconds)
        self.detail = f"Another attempt is due after {self.seconds:g} s."

    def __str__(self) -> str:
        return self.detail


class BatchError(MongozException):
    """Raised by a batch receiver: only these events of its batch failed, and all others are done.

    A dispatcher repeats the failed events, and also the later events of their documents. With `transactional=True`
    the transaction is aborted, so the other events must run again too. They run again immediately, in a
    transaction without the failed events.

    Args:
        errors: the error of each failed event, by its index in the batch.

    Raises:
        SignalError: `errors` is empty, or is no mapping from indexes to exceptions.

    Examples:
        >>> response = await search.bulk(actions)
        >>> if failed := {n: IndexingError(item) for n, item in enumerate(response.items) if item.error}:
        ...     raise mongoz.BatchError(failed)
    """

    def __init__(self, errors: Mapping[int, Exception]) -> None:
        if not isinstance(errors, Mapping) or not errors:
            raise SignalError(
                f"BatchError({errors!r}) needs the errors of the failed events by index: {{0: error}}."
            )
        for index, error in errors.items():
            if isinstance(index, bool) or not isinstance(index, int) or index < 0:
                raise SignalError(f"BatchError: {index!r} is no index of an event in the batch.")
            if not isinstance(error, Exception):
                raise SignalError(f"BatchError: {error!r} of the event {index} is no exception.")
        super().__init__(dict(errors))
        self.errors = dict(errors)
        index, error = next(iter(self.errors.items()))
        self.detail = f"{len(self.errors)} events of the batch failed; event {index}: {error!r}"

    def __str__(self) -> str:
        return self.detail
