"""`python -m dispatcher`, and the console script."""

import sys

from dispatcher.core.file_descriptors import require_descriptors
from dispatcher.core.installation import require_own_mongoz
from dispatcher.core.output.streams import open_streams
from dispatcher.exceptions import NotInstalled, TooManyFiles


def main() -> None:
    """Run the command line. An early Ctrl-C ends it without a traceback."""
    open_streams()
    try:
        require_descriptors()
        require_own_mongoz()
        from dispatcher.cli import main as command_line  # noqa: PLC0415 - Ctrl-C can come while it loads

        command_line()
    except KeyboardInterrupt:
        sys.exit(130)
    except (TooManyFiles, NotInstalled) as error:
        sys.stderr.write(f"error: {error.message}\nremedy: {error.remedy}\n")  # `cli.output` may not be loaded
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
