"""Worker processes. Each worker measures the operations of one module on request."""

import json
import select
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from benchmarks.contestants import BenchmarkFailed

__all__ = ["Turn", "Worker"]

_ROOT: Final = Path(__file__).parent.parent
_PATIENCE_SECONDS: Final = 120.0


class Turn(NamedTuple):
    """The time of one turn."""

    seconds: float
    cpu_seconds: float


class Worker:
    """A process that measures the operations of one module, and is ended at the end of the block.

    Args:
        python: the interpreter of the process.
        module: the name of the module of the side.
        url: the URL of the server.
    """

    def __init__(self, python: str, module: str, url: str) -> None:
        self._name = module
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process runs
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.workloads.sides.worker", module, url],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # it has no work to finish
        self._process.communicate()
        self._errors.close()

    def wait_ready(self) -> None:
        """Wait until the process is prepared."""
        self._heard()

    def measure(self, operation: str, count: int) -> Turn:
        """Run an operation this number of times.

        Raises:
            BenchmarkFailed: the operation failed.
        """
        assert self._process.stdin is not None
        try:
            print(json.dumps({"operation": operation, "count": count}), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise self._failed("ended") from None
        said = self._heard()
        return Turn(said["seconds"], said["cpu_seconds"])

    def _heard(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        # The process writes one line for each request. So no line waits in the buffer, where select can't see it.
        if not select.select([self._process.stdout], [], [], _PATIENCE_SECONDS)[0]:
            raise self._failed(f"wrote nothing for {_PATIENCE_SECONDS:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise self._failed("ended")
        said: dict[str, Any] = json.loads(line)
        return said

    def _failed(self, what: str) -> BenchmarkFailed:
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").splitlines()[-30:]
        return BenchmarkFailed(f"The side {self._name} {what}. Its last lines:\n" + "\n".join(words))
