"""`python -m dispatcher`, and the console script."""

import io
import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; Ctrl-C before it can do better ends it without a traceback."""
    _open_standard_streams()
    try:
        from dispatcher.cli import main as command_line  # noqa: PLC0415 - Ctrl-C may come while it loads

        command_line()
    except KeyboardInterrupt:
        sys.exit(130)


def _open_standard_streams() -> None:
    """Have stdin, stdout and stderr for this process and its children, and let them take any text.

    A closed one would be the next file or socket that is opened, and what is printed would go there; uvloop does
    not even start. What an encoding lacks is written as an escape.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            os.dup2(opened, descriptor)  # may be the same; children inherit it in any case
            if opened != descriptor:
                os.close(opened)
            os.set_inheritable(descriptor, True)
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            stream = os.fdopen(descriptor, mode, closefd=False)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
