"""Identifies processes, and detects the death of other processes.

A killed process leaves its leases behind. On the same machine another process can see its death, and takes over
without waiting. On other machines a process waits until the leases have run out.
"""

import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

_BOOT: Final = re.compile(r"(?P<where>.+)/(?P<started>\d+)")

# States of a process that has ended, while its entry in /proc still exists.
_OVER: Final = frozenset({"Z", "X", "x"})


class Identity(NamedTuple):
    """Identifies a process among all processes on all machines.

    Attributes:
        host: the name of its machine, for people.
        pid: its process id, in the namespace of process ids to which it belongs.
        boot: identifies the boot of the machine, the namespace of process ids and the start of the process:
            `"<boot id>/<namespace>/<start>"`; empty if the system does not report them.
    """

    host: str
    pid: int
    boot: str

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Identity":
        """Read an identity from a document of the state. Values of wrong types count as unknown."""
        host, pid, boot = (document.get(name) for name in ("host", "pid", "boot"))
        known = isinstance(boot, str) and isinstance(pid, int)
        return cls(str(host), pid if isinstance(pid, int) else 0, str(boot) if known else "")

    @property
    def is_dead(self) -> bool:
        """Returns True if the process is certainly dead; False if it may be alive."""
        match, own = _BOOT.fullmatch(self.boot), _BOOT.fullmatch(own_identity().boot)
        if match is None or own is None or match["where"] != own["where"] or self.pid <= 0:
            return False
        try:
            # Signal 0 only checks whether the process exists. /proc may hide the processes of other users.
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OverflowError:  # no process has this number
            return True
        except OSError:  # it exists, and belongs to another user
            pass
        stat = _stat(self.pid)
        return stat is not None and (stat.started != match["started"] or stat.state in _OVER)


class _Stat(NamedTuple):
    state: str
    started: str


@cache
def own_identity() -> Identity:
    """The identity of this process."""
    boot = ""
    stat = _stat(os.getpid())
    with suppress(OSError):
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").readlink()
        if stat is not None:
            boot = f"{machine}/{namespace}/{stat.started}"
    return Identity(socket.gethostname(), os.getpid(), boot)


def _stat(pid: int) -> _Stat | None:
    """The state of a process, and its start in clock ticks since the boot; None if they can't be read."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        # The second field is the name in parentheses, which may hold any character.
        fields = text.rpartition(")")[2].split()
        return _Stat(fields[0], fields[19])
    except (OSError, IndexError, UnicodeDecodeError):
        return None
