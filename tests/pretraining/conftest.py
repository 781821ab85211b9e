"""One small run with finished inputs for all tests of stage 05, and a launcher that starts the stage quickly."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from packed_run import make_packed_run  # noqa: E402

from fork_launcher import Launcher  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def packed_run(tmp_path_factory) -> tuple[Path, Path]:
    """(configuration file, run folder) with stages 02 to 04 finished; do not write into it."""
    return make_packed_run(tmp_path_factory.mktemp("pretraining"))


@pytest.fixture
def fresh_run(packed_run, tmp_path) -> tuple[Path, Path]:
    """A copy of the run that a test may train in."""
    shutil.copytree(packed_run[1], tmp_path / "run")
    return packed_run[0], tmp_path / "run"


@pytest.fixture(scope="session")
def launcher() -> Launcher:
    return Launcher("05_pretrain.py")
