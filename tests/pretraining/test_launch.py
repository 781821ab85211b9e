"""How stage 05 starts and ends as one of several processes."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline_lib.checkpoints import load_checkpoint, newest_valid_checkpoint
from pipeline_lib.config.pretrain import PretrainSettings
from pipeline_lib.pretraining import distribution, launch
from pipeline_lib.pretraining.inputs import open_training_inputs
from pipeline_lib.stage import StageInterrupted

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.mark.parametrize("missing", ["03_packed", "configuration"])
def test_a_process_that_alone_does_not_see_the_files_says_so(packed_run, tmp_path, monkeypatch, capsys, missing):
    config, run = tmp_path / "tiny.yaml", tmp_path / "run"
    if missing != "configuration":
        shutil.copy(packed_run[0], config)
    told = {"train": PretrainSettings().model_dump(mode="json")}
    monkeypatch.setattr(distribution, "join", lambda _: SimpleNamespace(share=lambda _: told))
    monkeypatch.setattr(sys, "argv", ["05_pretrain.py", "--config", str(config), "--run-dir", str(run)])
    monkeypatch.setenv("RANK", "9")
    with pytest.raises(SystemExit) as end:
        launch._follow("05_pretrain", open_training_inputs)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("process 9: ") and str(run if missing == "03_packed" else config) in said, said


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return a function that starts the stage in one folder; `start.began` are those that did not leave at once."""
    stage, began = SimpleNamespace(name="05_pretrain", work=tmp_path, say=print), []

    def start(
        torchrun: str | None, restarts: int, signal_number: int | None = None, process: int = 7, queued_again: int = 0
    ) -> int | None:
        """Return the number of the signal that the start leaves with. process: torchrun's number."""

        def run(_):
            began.append((torchrun, restarts))
            if signal_number is not None:
                raise StageInterrupted(signal_number)

        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        if torchrun is not None:
            monkeypatch.setenv("TORCHELASTIC_RUN_ID", torchrun)
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(queued_again))
        monkeypatch.setattr(os, "getppid", lambda: process)
        try:
            launch._unless_it_left(stage, restarts, run)
        except StageInterrupted as interruption:
            return interruption.signal_number
        return None

    start.began = began
    return start


def test_only_a_restart_of_the_torchrun_whose_start_left_leaves_at_once(start, tmp_path):
    assert start("job-1", 0, signal.SIGINT) == start("job-1", 1) == start("job-1", 2) == signal.SIGINT
    assert start.began == [("job-1", 0)]
    assert start("job-1", 0) is None  # the job was queued again under its name
    assert start("job-1", 1) is None  # and failed otherwise
    assert start("job-1", 1, signal.SIGTERM) == signal.SIGTERM
    assert start("job-2", 1) is None
    assert start(None, 0, signal.SIGTERM) == signal.SIGTERM and start(None, 0) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("other", [{"process": 8}, {"queued_again": 1}])
def test_a_job_queued_again_whose_first_start_failed_before_it_saw_the_word_goes_on(start, other):
    assert start("job-1", 0, signal.SIGTERM) == signal.SIGTERM
    assert start("job-1", 1, **other) is None
    assert start("job-1", 2, **other) is None and len(start.began) == 3


def test_a_start_because_a_node_joined_after_a_failure_goes_on(start):
    """torchrun stops the healthy processes with a signal, and does not count the start that follows."""
    assert start("job-1", 1, signal.SIGTERM) == signal.SIGTERM
    assert start("job-1", 1) is None
    assert start("job-1", 2) is None  # a failure after it
    assert start("job-1", 2, signal.SIGTERM) == start("job-1", 3) == signal.SIGTERM


def test_a_word_that_an_older_version_left_is_removed(start, tmp_path):
    (tmp_path / "left.json").write_text('{"torchrun": "job-1", "signal": 15}')
    assert start("job-1", 1) is None and not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, pytest.param(1, marks=pytest.mark.long)])
def test_at_its_time_limit_a_run_leaves_torchrun_for_good(fresh_run, processes):
    config, run = fresh_run
    command = [
        str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", str(processes),
        "--max-restarts", "3", str(SCRIPTS / "05_pretrain.py"), "--config", str(config), "--run-dir", str(run),
        "--time_limit_seconds", "0.001",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env={**os.environ})
    log = (run / "05_pretrain" / "log.txt").read_text()
    assert done.returncode == 1 and "(exitcode: 143)" in done.stderr, done.stdout + done.stderr
    assert log.count("the time limit of 0 s is reached after step 1") == 1 and log.count("is reached after step") == 1
    assert log.count("the start before left with all saved") == 3
    assert load_checkpoint(newest_valid_checkpoint(run / "05_pretrain" / "work" / "checkpoints")).step == 1


def test_a_process_that_leaves_early_waits_until_the_first_one_has_saved(packed_run, monkeypatch):
    """torchrun ends the processes of a node, saving or not, half a minute after one of them has ended."""
    shared = []

    def share(_):
        shared.append(len(shared))
        return {"train": PretrainSettings().model_dump(mode="json")}

    def follow(_):
        raise StageInterrupted(signal.SIGTERM)

    monkeypatch.setattr(distribution, "join", lambda _: SimpleNamespace(share=share))
    monkeypatch.setattr(sys, "argv", ["05_pretrain.py", "--config", str(packed_run[0])])
    with pytest.raises(SystemExit) as end:
        launch._follow("05_pretrain", follow)
    assert (end.value.code, shared) == (143, [0, 1])
