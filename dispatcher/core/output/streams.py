"""Opens missing standard streams, and makes stdout and stderr accept any text.

If stdout can't be written to, the write raises CannotWrite, and the command fails. If stderr can't be written to,
the text is dropped, because the error can't be reported anywhere.
"""

import io
import os
import select
import sys
from contextlib import suppress
from typing import Any, Final

from dispatcher.exceptions import CannotWrite

_NAMES: Final = ("stdin", "stdout", "stderr")


class _StandardOutput(io.FileIO):
    """The binary layer of stdout or stderr. It can't be closed."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._failed = False

    def write(self, data: Any) -> int:
        """Write all bytes. After a failure, discard them, so that the interpreter's last flush succeeds."""
        left = memoryview(data).cast("B")
        size = len(left)
        while left and not self._failed:
            try:
                written = super().write(left)
            except OSError as error:
                self._on_failure(error)
            else:
                left = left[written or 0 :]
                if written is None:  # another process with this descriptor made it non-blocking
                    select.select((), (self,), ())
        return size

    def _on_failure(self, error: OSError) -> None:
        self._failed = True
        if self.fileno() == 2:
            return
        if isinstance(error, BrokenPipeError):  # the reader has closed the pipe; click handles it
            raise error
        raise CannotWrite(
            f"stdout could not be written: {error.strerror}.",
            remedy="Make room on the disk, or redirect stdout. The output so far is incomplete.",
        ) from error

    def close(self) -> None:
        """Do nothing: a receiver that closes a standard stream would close it for all other code too."""


def open_streams() -> None:
    """Open stdin, stdout and stderr where they are closed, for this process and its children.

    Otherwise the next file or socket would get the descriptor of a closed stream, and printed text would go there.
    uvloop does not even start with closed streams. Characters that the encoding lacks are written as escapes.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            os.dup2(opened, descriptor)  # does nothing if both are the same
            if opened != descriptor:
                os.close(opened)
            os.set_inheritable(descriptor, True)  # for the children
    if sys.stdin is None:
        _set_stream("stdin", os.fdopen(0, closefd=False))
    for descriptor in (1, 2):
        earlier: Any = getattr(sys, _NAMES[descriptor])
        stream = io.TextIOWrapper(
            _StandardOutput(descriptor),
            encoding=getattr(earlier, "encoding", None),
            errors="backslashreplace",
            line_buffering=descriptor == 2 or os.isatty(descriptor),
            write_through=getattr(earlier, "write_through", False),
        )
        _set_stream(_NAMES[descriptor], stream)


def _set_stream(name: str, stream: Any) -> None:
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


def restore_streams() -> None:
    """Restore stdout and stderr if they were replaced by objects that can't be flushed.

    The interpreter flushes both at its end, and an error in this flush would change the exit code.
    """
    for name in _NAMES[1:]:
        try:
            getattr(sys, name).flush()
        except BaseException:  # the replacement may be any object
            setattr(sys, name, getattr(sys, f"__{name}__"))
            with suppress(CannotWrite, OSError):
                getattr(sys, name).flush()
