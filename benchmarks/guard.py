"""A guard against regressions of speed: it counts instructions with valgrind's callgrind.

Each operation is counted next to a bare reference in the same interpreter. The ratio of the two counts is compared
with a recorded ratio. So the machine, its load and the build of Python do not matter. guard.json has the recorded
ratios. A ratio that exceeds its record by more than 15 % fails.

    python -m benchmarks.guard              compare
    python -m benchmarks.guard --record     record the present ratios
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Verdict", "judge", "main"]

RECORDS: Final = Path(__file__).parent / "guard.json"

_SLACK: Final = 1.15
_PATIENCE_SECONDS: Final = 600

# Operation -> its reference.
_REFERENCES: Final = {
    "send": "await",
    "hydrate": "validate",
    "create_silent": "make",
    "create_heard": "make",
    "create_stamped": "make",
    "create_claimed": "make",
    "create_context": "make",
    "save": "validate",
    "update": "validate",
    "deliver": "loop",
    "deliver_batch": "loop",
    "deliver_limited": "loop",
    "deliver_context": "loop",
    "own": "loop",
    "own_claimed": "loop",
    "publish": "loop",
    "read_topic": "loop",
}

_DUMP: Final = re.compile(r"^desc: Trigger: Client Request: (\w+) (\d+)$.*^summary: (\d+)", re.M | re.S)

EXIT_SLOWER, EXIT_FAILED = 1, 2


class Verdict(NamedTuple):
    """One operation.

    Attributes:
        name: the name of the operation.
        instructions: the number of instructions of one operation.
        ratio: this number divided by the number of the reference.
        record: the recorded ratio; None for a new operation.
    """

    name: str
    instructions: float
    ratio: float
    record: float | None

    @property
    def holds(self) -> bool:
        """Whether the ratio is within the limit."""
        return self.record is not None and self.ratio <= self.record * _SLACK


def main(arguments: Sequence[str] | None = None) -> int:
    """Count and compare; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write the ratios to guard.json instead")
    options = parser.parse_args(arguments)
    missing = _what_is_missing()
    if missing:
        print(f"The guard needs {missing}.", file=sys.stderr)
        return EXIT_FAILED if os.environ.get("CI") else 0
    try:
        verdicts = judge(_count(), {} if options.record else _records())
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    if options.record:
        RECORDS.write_text(json.dumps({v.name: round(v.ratio, 3) for v in verdicts}, indent=1) + "\n", "utf-8")
    for verdict in verdicts:
        print(_described(verdict, recording=options.record))
    return 0 if options.record or all(verdict.holds for verdict in verdicts) else EXIT_SLOWER


def judge(counts: dict[str, float], records: dict[str, float]) -> list[Verdict]:
    """Compare the ratios with their records.

    Args:
        counts: instructions per operation, references included.
        records: the recorded ratios.
    """
    return [
        Verdict(name, counts[name], counts[name] / counts[reference], records.get(name))
        for name, reference in _REFERENCES.items()
    ]


def _described(verdict: Verdict, *, recording: bool) -> str:
    text = f"{verdict.name:16}{verdict.instructions:>10,.0f} instructions, {verdict.ratio:6.2f}x the reference"
    if recording:
        return text
    if verdict.record is None:
        return f"{text}: no record, see --record"
    change = verdict.ratio / verdict.record - 1
    return f"{text}, {change:+.1%} against the record" + ("" if verdict.holds else ": MORE THAN 15 % SLOWER")


def _records() -> dict[str, float]:
    records: dict[str, float] = json.loads(RECORDS.read_text("utf-8"))
    return records


def _what_is_missing() -> str | None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "Linux on x86-64"
    return None if shutil.which("valgrind") else "valgrind, which 'apt-get install valgrind' brings"


def _count() -> dict[str, float]:
    """Instructions per operation, by the name of the operation.

    Raises:
        RuntimeError: valgrind failed, or the program under valgrind failed.
    """
    with tempfile.TemporaryDirectory(prefix="mongoz-guard-") as directory:
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={directory}/out"]
        done = subprocess.run(
            [*command, sys.executable, "-m", "benchmarks.workloads.counted"],
            cwd=Path(__file__).parent.parent,
            env={name: value for name, value in os.environ.items() if not name.startswith("DISPATCHER_")}
            | {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"valgrind ended with {done.returncode}. Its last lines:\n{done.stderr[-2000:]}")
        counts = {}
        for path in Path(directory).glob("out.*"):
            found = _DUMP.search(path.read_text("utf-8", errors="replace"))
            if found is not None:
                counts[found[1]] = int(found[3]) / int(found[2])
    unknown = {*_REFERENCES, *_REFERENCES.values()} - counts.keys()
    if unknown:
        raise RuntimeError(f"nothing was counted of {', '.join(sorted(unknown))}")
    return counts


if __name__ == "__main__":
    sys.exit(main())
