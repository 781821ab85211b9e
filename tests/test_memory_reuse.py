"""Freed memory is reused: training-sized tensors cost page faults once, not at every step."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy
sys.path.insert(0, sys.argv[1])
if sys.argv[2] == "keep":
    from pipeline_lib.memory_reuse import keep_freed_memory
    assert keep_freed_memory()
for _ in range(3):
    numpy.ones(16_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    numpy.ones(16_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the thresholds are those of glibc")
def test_large_blocks_are_not_faulted_in_again(scripts):
    def faults(mode):
        command = [sys.executable, "-c", FAULTS, str(scripts), mode]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("keep") < faults("give back") / 10
