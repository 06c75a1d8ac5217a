"""Which process this is, and whether another one is dead for certain.

A process that was killed leaves its leases behind. On its own machine it can be seen that it is gone, and its
successor need not wait until they run out. Everywhere else nobody knows, and the leases are waited for.
"""

import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

__all__ = ["Identity", "own_identity"]

_BOOT: Final = re.compile(r"(?P<where>.+)/(?P<started>\d+)")

# States of a process that runs no more, though its parent has not asked for its exit code yet.
_OVER: Final = frozenset({"Z", "X", "x"})


class Identity(NamedTuple):
    """A process among all that ever ran anywhere.

    Attributes:
        host: its machine's name, for people.
        pid: as it is known in its own namespace.
        boot: what tells the machine's start, the namespace of process ids and the process's own start from others:
            `"<boot id>/<namespace>/<start>"`; empty where that can't be found out.
    """

    host: str
    pid: int
    boot: str

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Identity":
        """What the state says of a process; what makes no sense is taken for unknown."""
        host, pid, boot = (document.get(name) for name in ("host", "pid", "boot"))
        known = isinstance(boot, str) and isinstance(pid, int)
        return cls(str(host), pid if isinstance(pid, int) else 0, str(boot) if known else "")

    @property
    def is_dead(self) -> bool:
        """Whether it is dead for certain. False says nothing."""
        match, own = _BOOT.fullmatch(self.boot), _BOOT.fullmatch(own_identity().boot)
        if match is None or own is None or match["where"] != own["where"] or self.pid <= 0:
            return False
        try:
            os.kill(self.pid, 0)  # sends nothing. /proc alone may hide what other users run
        except ProcessLookupError:
            return True
        except OverflowError:  # no process has such a number
            return True
        except OSError:  # it is there, and somebody else's
            pass
        stat = _stat(self.pid)
        return stat is not None and (stat.started != match["started"] or stat.state in _OVER)


class _Stat(NamedTuple):
    state: str
    started: str


@cache
def own_identity() -> Identity:
    """This process."""
    boot = ""
    stat = _stat(os.getpid())
    with suppress(OSError):
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").readlink()
        if stat is not None:
            boot = f"{machine}/{namespace}/{stat.started}"
    return Identity(socket.gethostname(), os.getpid(), boot)


def _stat(pid: int) -> _Stat | None:
    """What the kernel says of a process: its state, and its start in clock ticks since the machine's."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        # The name comes second, in parentheses, and may hold anything.
        fields = text.rpartition(")")[2].split()
        return _Stat(fields[0], fields[19])
    except (OSError, IndexError, UnicodeDecodeError):
        return None
