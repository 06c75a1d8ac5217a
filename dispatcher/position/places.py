"""Finds the place in a topic that is saved together with a token. No I/O."""

from collections import deque

from dispatcher.core.events import LogPlace


class Places:
    """The places of a reader between its position and the end of the records that it has read.

    A place may be saved with a token if all accepted records before the place have this token, or an earlier one.
    An earlier place is correct, too: a reader that starts there reads some records again, and drops them because
    of their tokens.

    Args:
        place: the saved place; None if there is none.
    """

    def __init__(self, place: LogPlace | None) -> None:
        self._passed = place
        self._ahead: deque[tuple[str, LogPlace]] = deque()

    def note(self, token: str, place: LogPlace) -> None:
        """Record that a batch has been read.

        Args:
            place: the place after the batch.
            token: all accepted records before `place` have this token, or an earlier one.
        """
        if self._ahead and self._ahead[-1][0] == token:
            self._ahead.pop()  # after this place, only refused records have come
        self._ahead.append((token, place))

    def at(self, token: str) -> LogPlace | None:
        """The last place before which all accepted records are finished.

        Args:
            token: all changes up to it are finished. The token of a later call is the same or higher.
        """
        ahead = self._ahead
        while ahead and ahead[0][0] <= token:
            self._passed = ahead.popleft()[1]
        return self._passed
