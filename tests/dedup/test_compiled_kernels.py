"""Kernels: their machine code belongs to the sources of a whole package, and numba's extensions to others."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dedup
from pipeline_lib.compiled import STAGE_VARIABLE

PROGRAM = """
import sys; sys.path.insert(0, sys.argv[1])
import numpy as np
from dedup.minhash import band_keys
print(band_keys(np.array([[1, 2]], np.uint32), 1, 2)[0, 0])
"""


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, {STAGE_VARIABLE: "02_clean"}], ids=["a library", "a stage"])
def test_only_a_stage_does_without_what_other_packages_teach_numba(environment):
    program = f"{PROGRAM}\nprint('awkward' in sys.modules)"
    command = [sys.executable, "-c", program, str(Path(dedup.__file__).parents[1])]
    others = {name: value for name, value in os.environ.items() if name != STAGE_VARIABLE}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**others, **environment})
    assert done.stdout.split()[1] == str(not environment)


@pytest.mark.long
def test_a_change_in_a_file_that_a_kernel_takes_from_reaches_the_kernel(tmp_path):
    scripts = Path(dedup.__file__).parents[1]
    for package in ("dedup", "pipeline_lib/stage"):
        shutil.copytree(scripts / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("__init__.py", "compiled.py"):
        shutil.copy(scripts / "pipeline_lib" / file, tmp_path / "pipeline_lib" / file)

    def key() -> str:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    before = key()
    assert key() == before
    shingles = tmp_path / "dedup" / "shingles.py"
    text = shingles.read_text()
    assert "0xFF51AFD7ED558CCD" in text
    shingles.write_text(text.replace("0xFF51AFD7ED558CCD", "0xFF51AFD7ED558CCF"))
    assert key() != before
