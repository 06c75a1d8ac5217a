"""Requests of the page, and the dead letters that they select. A malformed request raises `HTTPException`."""

from datetime import UTC
from typing import Final, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from dispatcher.operate.dead_letters import Wanted

# Maximum bytes of a request, and maximum number of dead letters that it names.
_LONGEST_BODY: Final = 100_000
_MOST_LETTERS: Final = 1_000


class LetterSearch(BaseModel):
    """A search for dead letters.

    The attributes mean the same as in `Wanted`. An attribute that is None does not restrict the search.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    receiver: str | None = None
    error: str | None = None
    reason: str | None = None
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    text: str | None = None

    @property
    def wanted(self) -> Wanted:
        """The filter of dead letters."""
        return Wanted(
            receiver=self.receiver,
            error=self.error,
            reason=self.reason,
            since=None if self.since is None else self.since.astimezone(UTC),
            until=None if self.until is None else self.until.astimezone(UTC),
            text=self.text or None,
        )


class LettersRequest(LetterSearch):
    """An action on dead letters: on some, by their ids, or on all that are selected.

    Attributes:
        ids: the ids of the dead letters; None with `all`.
        all: whether the action is on all dead letters that the search selects.
        began: the time at which the action began, by the server's clock; None in the first request of an action.
    """

    ids: list[str] | None = None
    all: bool = False
    began: AwareDatetime | None = None

    def require(self) -> None:
        """Require either `ids` or `all`. A request with neither must not select all dead letters."""
        if (self.ids is None) == (not self.all):
            raise HTTPException(400, "Give ids of dead letters, or all.")
        if self.ids is not None and len(self.ids) > _MOST_LETTERS:
            text = f"{len(self.ids):,} dead letters are given; the maximum is {_MOST_LETTERS:,}."
            raise HTTPException(400, text)


class ProgressRequest(LetterSearch):
    """Asks for the state of a retry that began at this time."""

    began: AwareDatetime


class PauseRequest(BaseModel):
    """Selects the receiver to pause or resume; None selects everything."""

    model_config = ConfigDict(extra="forbid", strict=True)

    receiver: str | None


_Model = TypeVar("_Model", bound=BaseModel)


async def body_of(request: Request, kind: type[_Model]) -> _Model:
    """The content of a request."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "Send JSON with Content-Type: application/json.")
    sent = bytearray()
    async for piece in request.stream():
        sent += piece
        if len(sent) > _LONGEST_BODY:
            raise HTTPException(413, f"The request has more than {_LONGEST_BODY:,} bytes.")
    try:
        return kind.model_validate_json(bytes(sent))
    except ValidationError as error:
        raise _refusal(error) from error


def query_of(request: Request, kind: type[_Model]) -> _Model:
    """The parameters of a request that reads."""
    given = {name: value for name, value in request.query_params.items() if name in kind.model_fields}
    try:
        return kind.model_validate_strings(given)
    except ValidationError as error:
        raise _refusal(error) from error


def _refusal(error: ValidationError) -> HTTPException:
    first = error.errors()[0]
    where = ".".join(str(one) for one in first["loc"])
    return HTTPException(400, f"{where or 'the request'}: {first['msg']}")
