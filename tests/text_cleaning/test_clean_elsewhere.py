"""Stage 02 by the tasks of an engine: the files, the ledger and the receipts of one process, also after a kill."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from finished_download import finish_download
from test_02_clean_stage import EVALUATION, SCRIPT, command, corpus, output_digests, start

from pipeline_lib.stage import StageFailure
from pipeline_lib.stage.manifest import Manifest
from pipeline_lib.text_cleaning import corpus as corpus_module

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engines"))
import in_process  # noqa: E402
from slurm_stand_in import Job, install, wait_until  # noqa: E402

PROMPT = ["--poll_seconds", "0.1", "--patience_seconds", "1"]
SLURM = ["--engine", "slurm", "--partition", "cpu", "--tasks", "2", *PROMPT]
RAY = ["--engine", "ray", "--tasks", "2", "--memory_per_cpu_gb", "1", *PROMPT]


@pytest.fixture(scope="module")
def at_home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    finish_download(folder, corpus(), {"questions": EVALUATION})
    done = start(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    finish_download(folder, corpus(), {"questions": EVALUATION})
    return folder


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch) -> Path:
    """The jobs of a scheduler that this test has for itself."""
    found = install(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{found.parent}:{os.environ['PATH']}")
    return found


def decisive(folder: Path) -> dict:
    manifest = Manifest.read(folder / "02_clean" / "manifest.json")
    assert manifest is not None
    told = manifest._decisive()
    told["fingerprint"].pop("data")  # names the folder of the evaluation tasks
    return told


def names_of(jobs: Path) -> list[str]:
    return [Job(jobs, folder.name).option("job-name") for folder in sorted(jobs.iterdir())]


STEPS = ["clean", *(f"dedup-{name}" for name in ("sketch", "exact", "bands", "group", "sets", "resolve")), "final"]


def test_tasks_clean_to_the_same_files_step_by_step(at_home: Path, run_folder: Path, monkeypatch):
    batches = in_process.take_the_place_of_ray(monkeypatch, tasks=3)
    flags = command(run_folder, *in_process.FLAGS)[2:]
    assert in_process.run_script(monkeypatch, SCRIPT.name, *flags) == 0
    assert output_digests(run_folder) == output_digests(at_home)
    assert decisive(run_folder) == decisive(at_home)
    assert [batch.step for batch in batches] == STEPS
    assert {batch.step: len(batch.jobs) for batch in batches}["clean"] == 3


def test_damaged_candidates_end_a_task_and_the_stage_with_one_line(run_folder: Path, monkeypatch, capsys):
    in_process.take_the_place_of_ray(monkeypatch, tasks=1)
    find = corpus_module.find_duplicates

    def damage(stage, shards):
        found = find(stage, shards)
        shards[1].pieces[0].candidates.write_bytes(b"PAR1")
        return found

    monkeypatch.setattr(corpus_module, "find_duplicates", damage)
    flags = command(run_folder, *in_process.FLAGS)[2:]
    assert in_process.run_script(monkeypatch, SCRIPT.name, *flags) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert "part-00001-0000.parquet is missing or damaged" in error


def test_a_shard_that_was_being_taken_when_the_stage_ended_is_not_written_again(
    at_home: Path, run_folder: Path, monkeypatch
):
    batches = in_process.take_the_place_of_ray(monkeypatch, tasks=2)
    flags = command(run_folder, *in_process.FLAGS)[2:]
    take = corpus_module.link_or_copy

    def take_and_end(source: Path, target: Path) -> None:
        take(source, target)
        raise StageFailure("the end")

    with monkeypatch.context() as patched:
        patched.setattr(corpus_module, "link_or_copy", take_and_end)
        assert in_process.run_script(monkeypatch, SCRIPT.name, *flags) == 1
    assert batches.pop().step == "final"
    batches.clear()
    assert in_process.run_script(monkeypatch, SCRIPT.name, *flags) == 0
    assert batches == []
    assert output_digests(run_folder) == output_digests(at_home)


def test_deduplication_that_ended_before_the_journal_knew_is_not_done_again(
    at_home: Path, run_folder: Path, monkeypatch
):
    batches = in_process.take_the_place_of_ray(monkeypatch, tasks=2)
    flags = command(run_folder, *in_process.FLAGS)[2:]

    def end(path: Path) -> str:
        raise StageFailure("the end")

    with monkeypatch.context() as patched:
        patched.setattr(corpus_module, "file_digest", end)
        assert in_process.run_script(monkeypatch, SCRIPT.name, *flags) == 1
    assert batches[-1].step == "dedup-resolve"
    batches.clear()
    assert in_process.run_script(monkeypatch, SCRIPT.name, *flags) == 0
    assert [batch.step for batch in batches] == ["final"]
    assert output_digests(run_folder) == output_digests(at_home)


@pytest.mark.long
def test_slurm_cleans_to_the_same_files_step_by_step(at_home: Path, run_folder: Path, jobs: Path):
    done = subprocess.run(command(run_folder, *SLURM), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr + done.stdout
    assert output_digests(run_folder) == output_digests(at_home)
    assert decisive(run_folder) == decisive(at_home)
    assert names_of(jobs) == [f"02_clean-{step}" for step in STEPS]
    again = start(run_folder)
    assert again.stdout.strip() == "02_clean: up to date"


@pytest.mark.long
@pytest.mark.parametrize("step", ["clean", "dedup-bands", "final"])
def test_a_killed_start_goes_on_to_the_same_files(at_home: Path, run_folder: Path, jobs: Path, step: str):
    coordinator = subprocess.Popen(
        command(run_folder, *SLURM), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_until(lambda: jobs.exists() and f"02_clean-{step}" in names_of_whole(jobs), 300)
    os.killpg(coordinator.pid, signal.SIGKILL)
    coordinator.wait()
    done = subprocess.run(command(run_folder, *SLURM), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr + done.stdout
    assert output_digests(run_folder) == output_digests(at_home)
    assert decisive(run_folder) == decisive(at_home)


def names_of_whole(jobs: Path) -> list[str]:
    """The names of the jobs whose script has been written."""
    written = [Job(jobs, folder.name) for folder in sorted(jobs.iterdir()) if (folder / "0.state").exists()]
    return [job.option("job-name") for job in written]


@pytest.mark.long
def test_ray_cleans_to_the_same_files(at_home: Path, run_folder: Path):
    pytest.importorskip("ray")
    done = subprocess.run(command(run_folder, *RAY), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr + done.stdout
    assert output_digests(run_folder) == output_digests(at_home)
    assert decisive(run_folder) == decisive(at_home)
