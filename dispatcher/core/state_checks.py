"""Skips and reports malformed documents of the state.

A person may have edited them, or another program may write to the same database. Positions are an exception: a
dispatcher that does not know its position must not guess, see `position/documents.py`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import BaseModel, Field, ValidationError

from dispatcher.core.error_text import words_of
from dispatcher.core.output.logs import log

# Maximum number of documents in `StateReader.misfits`.
_MOST_NAMED: Final = 20

# Maximum number of malformed documents that a process logs. Further ones are skipped without a log line.
_MOST_LOGGED: Final = 1_000

# Maximum characters of `Misfit.id`, and of `Misfit.problem`.
_LONGEST: Final = 300

_REMEDY: Final = "Was it edited by hand, or by another program? Fix it or delete it; until then it is skipped."

_logged: set[tuple[str, str]] = set()

T = TypeVar("T")


class Misfit(NamedTuple):
    """A malformed document of the state.

    Attributes:
        collection: its collection, with the database.
        id: its `_id` as text.
        problem: the reason why it is malformed.
        remedy: what to do about it.
    """

    collection: str
    id: str
    problem: str
    remedy: str


class StateReader:
    """Reads documents of the state, and collects the malformed ones.

    Attributes:
        misfits: the first malformed documents.
    """

    def __init__(self, database: str) -> None:
        self._database = database
        self.misfits: list[Misfit] = []

    def each(self, collection: str, found: Iterable[Mapping[str, Any]], make: Callable[[Any], T]) -> list[T]:
        """Read documents.

        Args:
            make: reads one document; raises any error if it is malformed.
        """
        made = []
        for document in found:
            try:
                made.append(make(document))
            except Exception as error:  # wrong types may raise any error
                self.skip(collection, document.get("_id"), error)
        return made

    def skip(self, collection: str, id_: Any, error: Exception) -> None:
        """Record a malformed document."""
        if len(self.misfits) < _MOST_NAMED:
            place, name = f"{self._database}.{collection}", words_of(repr(id_))[:_LONGEST]
            self.misfits.append(Misfit(place, name, problem_of(error)[:_LONGEST], _REMEDY))

    def log(self) -> None:
        """Log the misfits, each once in the life of the process."""
        for one in self.misfits:
            if (one.collection, one.id) not in _logged and len(_logged) < _MOST_LOGGED:
                _logged.add((one.collection, one.id))
                log.warning(
                    "a document of the state is malformed; it is skipped",
                    action="state.misfit",
                    collection=one.collection,
                    id=one.id,
                    problem=one.problem,
                    remedy=one.remedy,
                )


def problem_of(error: Exception) -> str:
    """Describe the problem of a document. `error` was raised when the document was read."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        return f"{where}: {first['msg']}, and it is {words_of(repr(first['input']))[:100]}"
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return words_of(error) or type(error).__name__


def receiver_paused(found: Mapping[str, Any]) -> str | None:
    """The receiver in the document of a pause; None if everything is paused.

    Raises:
        ValueError: the document is malformed. It must not pause everything.
    """
    match found:
        case {"receiver_name": str(name)}:
            return name
        case {"receiver_name": None, "receiver": "*"}:
            return None
    raise ValueError("receiver_name is neither a name, nor null with receiver '*'")


class _LetterFields(BaseModel):
    id: str = Field(alias="_id")
    receiver: str | None = None
    signal: str | None = None
    document: str | None = None
    reason: str | None = None
    namespace: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    retry_refused: dict[str, Any] | None = None
    attempts: int = 0
    retries: int = 0
    update_fields: list[str] | None = None
    parts: dict[str, bytes] = {}
    files: dict[str, Any] = {}


def letter(found: Mapping[str, Any]) -> dict[str, Any]:
    """Check the document of a dead letter, and return it.

    Raises:
        ValidationError: a field has the wrong type.
    """
    _LetterFields.model_validate(found)
    return dict(found)
