"""Tracks the changes of one partition in stream order, and computes its position."""

from collections import deque

from dispatcher.core.events import Job


class Tracker:
    """Computes the position, which never passes an unfinished change. No I/O.

    The position never lies between a delete marker and its delete: a process that started there would read the
    delete without its marker, and treat it as a delete by another client.

    Args:
        token: all changes up to this token are finished.

    Attributes:
        weight: total length of the tokens of all changes after the position, finished or not, in characters.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self._open: deque[Job] = deque()
        # A finished marker, and the finished jobs after it. The delete of the marker is still in `_open`, behind
        # an unfinished change. Until the delete is finished, the position must stay before all these jobs.
        self._between: list[Job] = []
        self._announced = 0
        self._mark = token
        self.weight = 0

    def add(self, job: Job) -> None:
        """Add the next change of the stream. If this and all earlier changes are finished, move the position."""
        if job.change is None and not self._open:
            self.token = job.token
        else:
            self._open.append(job)
            self.weight += len(job.token)

    def mark(self, token: str) -> None:
        """Record that the stream has been read up to this token, the token after a batch. The batch may be empty.

        If the batch was filled to its limit, this is the token of its last event. `mark` adds no change,
        so `ahead` stays the same.
        """
        self._mark = token
        # If a stream was opened at a time instead of at a token, its first tokens can precede the position.
        if not self._open and token > self.token:
            self.token = token

    def finished(self, job: Job) -> None:
        """Record that a part of a job is finished, see `Job`. Most jobs have one part."""
        if not job.finish_part():
            return
        jobs = self._open
        while jobs and (first := jobs[0]).change is None:
            jobs.popleft()
            # From a marker up to its delete, jobs are kept back. The position passes them with the delete.
            self._announced += first.announces
            if self._announced:
                self._between.append(first)
                continue
            self.token = first.token
            self.weight -= len(first.token)
            if self._between:
                self.weight -= sum(len(one.token) for one in self._between)
                self._between.clear()
        if not jobs and self._mark > self.token:
            self.token = self._mark

    @property
    def read(self) -> str:
        """The token up to which all changes are in their lanes, or finished."""
        return max(self._mark, self.token, self._open[-1].token if self._open else "")

    @property
    def span(self) -> int:
        """The number of changes after the position, finished or not."""
        return len(self._between) + len(self._open)

    def undelivered(self) -> tuple[Job | None, int]:
        """The oldest change that this process has yet to deliver, and the number of changes from it on.

        The search for the oldest change skips the changes that only the writing process may deliver. The number
        counts all changes from the oldest one on: skipped and finished ones, too.
        """
        for place, job in enumerate(self._open):
            if job.change is not None and not job.is_awaited:
                return job, len(self._open) - place
        return None, 0

    @property
    def ahead(self) -> list[Job]:
        """Finished changes after the position, in the order of the stream."""
        return [*self._between, *(job for job in self._open if job.change is None)]
