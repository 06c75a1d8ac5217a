"""The process keeps the memory of freed buffers."""

import os
import platform
import subprocess
import sys

import pytest

_PROGRAM = """
import resource, sys
from dispatcher.runtime.malloc_tuning import keep_buffers

if sys.argv[1] == "kept":
    keep_buffers()
for rounds in (3, 100):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        answer = [bytearray(466_000) for _ in range(4)]
        small = bytes(1_000)
        del answer, small
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(how: str, **variables: str) -> int:
    """The number of pages that the system clears for 100 answers."""
    command, env = [sys.executable, "-c", _PROGRAM, how], {**os.environ, **variables}
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_buffers_of_answers_use_the_same_pages_again():
    assert _faults("kept") < 500 < _faults("default")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_the_settings_of_the_operator_apply(name):
    assert _faults("kept", **{name: "100000"}) > 500


def test_a_python_without_ctypes_works():
    program = "import sys; sys.modules['ctypes'] = None; "
    program += "from dispatcher.runtime.malloc_tuning import keep_buffers; keep_buffers()"
    subprocess.run([sys.executable, "-c", program], check=True)
