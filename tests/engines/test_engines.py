"""A stage whose units are array jobs: the same outputs as at home, whatever fails, vanishes or is killed on the way."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from slurm_stand_in import Job, install, wait_until
from toy_units import is_whole, square

from pipeline_lib.config.load import load_config
from pipeline_lib.config.scale_out import ScaleOutSettings
from pipeline_lib.engines import gather, on_ray
from pipeline_lib.engines.batch import Batch, UnitsOfStep
from pipeline_lib.engines.on_slurm import SlurmJob, environment, executor_of, find_or_submit
from pipeline_lib.stage import StageFailure, UserError
from pipeline_lib.stage.manifest import Manifest

TOY = Path(__file__).with_name("toy_scaled_stage.py")
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
PROMPT = ["--poll_seconds", "0.05", "--patience_seconds", "0.5"]
SLURM = ["--engine", "slurm", "--partition", "cpu", "--tasks", "2", *PROMPT]


@dataclass
class Toy:
    """The toy stage in a folder with a scheduler of its own."""

    folder: Path
    jobs: Path

    def command(self, *flags: str) -> list[str]:
        config = self.folder / "toy.yaml"
        config.write_text("run: toy\n")
        return [sys.executable, str(TOY), "--config", str(config), "--run-dir", str(self.folder / "run"), *flags]

    def environment(self, **knobs: str) -> dict[str, str]:
        return os.environ | {
            "TOY_SCRIPTS": str(SCRIPTS),
            "TOY_UNITS": "5",
            "PYTHONPATH": str(TOY.parent),  # an editable install of one's own functions, in a way
            "PATH": f"{self.jobs.parent}:{os.environ['PATH']}",
            **knobs,
        }

    def run(self, *flags: str, **knobs: str) -> subprocess.CompletedProcess:
        environment = self.environment(**knobs)
        return subprocess.run(self.command(*flags), capture_output=True, text=True, timeout=120, env=environment)

    def start(self, *flags: str, **knobs: str) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(*flags),
            env=self.environment(**knobs),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def submitted(self) -> list[Job]:
        return [Job(self.jobs, folder.name) for folder in sorted(self.jobs.iterdir())]

    def log(self) -> str:
        return (self.folder / "run" / "01_download" / "log.txt").read_text()

    def results(self) -> int:
        return len(list((self.folder / "run").rglob("work/scale_out/*/results/*/*.json")))

    def manifest(self) -> Manifest:
        manifest = Manifest.read(self.folder / "run" / "01_download" / "manifest.json")
        assert manifest is not None
        return manifest

    def decisive(self) -> dict:
        return self.manifest()._decisive()


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path, install(tmp_path / "slurm"))


@pytest.fixture(scope="module")
def at_home(tmp_path_factory) -> dict:
    """What the manifest says when no engine is asked."""
    folder = tmp_path_factory.mktemp("home")
    toy = Toy(folder, install(folder / "slurm"))
    done = toy.run()
    assert done.returncode == 0, done.stderr
    assert toy.submitted() == []
    return toy.decisive()


@pytest.mark.slow
def test_slurm_makes_the_outputs_of_one_process_and_its_script_is_what_was_asked(toy: Toy, at_home: dict):
    asked = [
        "--time", "4:00:00", "--workers", "1", "--memory_per_cpu_gb", "3", "--cpus_per_task", "2", "--qos", "fast",
        "--sbatch_options", "{account: corpora}", "--setup", "['export TOY_LOADED=yes']",
    ]  # fmt: skip
    done = toy.run(*SLURM, *asked)
    assert done.returncode == 0, done.stderr + done.stdout
    assert toy.decisive() == at_home
    assert toy.manifest().run["engine"] == "slurm"
    (job,) = toy.submitted()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", job.script, re.MULTILINE))
    logs = options.pop("output")
    assert options.pop("error") == logs and logs.endswith("/%A_%a.out")
    assert options == {
        "array": "0-1%1",
        "partition": "cpu",
        "time": "4:00:00",
        "qos": "fast",
        "account": "corpora",
        "cpus-per-task": "2",
        "mem-per-cpu": "3G",
        "nodes": "1",
        "job-name": "01_download-square",
    }
    lines = [line.strip() for line in job.script.splitlines()]
    assert lines.index("export TOY_LOADED=yes") < lines.index(f"export PATH={Path(sys.executable).parent}:$PATH")
    assert f"export PYTHONPATH={SCRIPTS}${{PYTHONPATH:+:$PYTHONPATH}}" in lines
    assert lines[-1].startswith("srun") and "launch_pickled_pipeline" in lines[-1]
    assert toy.run("--engine", "ray").stdout.strip() == "01_download: up to date"  # another engine is no reason


@pytest.mark.slow
def test_a_task_that_dies_is_named_with_its_log_and_the_next_start_does_the_rest(toy: Toy, at_home: dict):
    done = toy.run(*SLURM, TOY_FAULT="4:die")
    assert done.returncode == 1
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    job = toy.submitted()[0].id
    assert f"Slurm job {job}: task 0 ended as FAILED without a result for square/4" in error
    log = Path(re.search(r"its log is (\S+);", error)[1])
    assert log.is_file() and log.name == f"{job}_0.out" and "launch_pickled_pipeline" in log.read_text()
    again = toy.run(*SLURM)
    assert again.returncode == 0, again.stderr
    assert toy.submitted()[1].tasks() == [0]  # one unit was left
    assert toy.decisive() == at_home


@pytest.mark.slow
def test_a_users_mistake_is_the_line_of_a_local_run_and_a_defect_names_its_traceback(toy: Toy):
    at_home = toy.run(TOY_FAULT="2:user")
    elsewhere = toy.run(*SLURM, TOY_FAULT="2:user")
    assert elsewhere.returncode == at_home.returncode == 2
    assert elsewhere.stderr == at_home.stderr == "error: numbers.txt:2 is not a number; put a number there\n"
    defect = toy.run(*SLURM, "--force", TOY_FAULT="3:defect")
    assert defect.returncode == 1
    assert "task 1 failed at square/3 (RuntimeError: a defect); its traceback is" in defect.stderr
    assert "RuntimeError: a defect" in Path(re.search(r"its traceback is (\S+);", defect.stderr)[1]).read_text()


@pytest.mark.slow
def test_a_killed_coordinator_finds_its_job_again(toy: Toy, at_home: dict):
    gate = toy.folder / "gate"
    coordinator = toy.start(*SLURM, TOY_GATE=str(gate))
    wait_until(lambda: toy.results() == 2)
    os.killpg(coordinator.pid, signal.SIGKILL)
    coordinator.communicate()
    (job,) = toy.submitted()
    again = toy.start(*SLURM)
    wait_until(lambda: f"Slurm job {job.id} of an earlier start is still at work" in toy.log())
    gate.touch()
    words = again.communicate(timeout=60)[0]
    assert again.returncode == 0, words
    assert len(toy.submitted()) == 1
    assert toy.decisive() == at_home


@pytest.mark.slow
def test_a_unit_that_was_being_taken_at_a_kill_is_taken_again(toy: Toy, at_home: dict):
    gate = toy.folder / "gate"
    coordinator = toy.start(*SLURM, TOY_GATE=str(gate), TOY_KILL="square/1")
    coordinator.communicate(timeout=60)
    assert coordinator.returncode == -signal.SIGKILL
    again = toy.start(*SLURM)  # the task that squared it is past it, and waits at the gate
    wait_until(lambda: "of an earlier start is still at work" in toy.log())
    gate.touch()
    words = again.communicate(timeout=60)[0]
    assert again.returncode == 0, words
    assert len(toy.submitted()) == 1
    assert toy.decisive() == at_home


def leave_a_job_that_is_past_a_unit_without_files(toy: Toy, **knobs: str) -> Path:
    """A killed start, its job waiting at the returned gate, and square/1, which a task has done, without its file."""
    gate = toy.folder / "gate"
    coordinator = toy.start(*SLURM, TOY_GATE=str(gate), TOY_KILL="square/1", **knobs)
    coordinator.communicate(timeout=60)
    assert coordinator.returncode == -signal.SIGKILL
    (toy.folder / "run" / "01_download" / "work" / "scratch" / "1.txt").unlink()
    return gate


def finish_found_job(toy: Toy, gate: Path) -> tuple[int, str]:
    """Start again, and open the gate once the job is found; return the exit code and what was said."""
    again = toy.start(*SLURM)
    wait_until(lambda: "of an earlier start is still at work" in toy.log())
    gate.touch()
    words = again.communicate(timeout=60)[0]
    return again.returncode, words


@pytest.mark.slow
def test_a_unit_that_the_found_job_is_past_goes_to_a_new_job(toy: Toy, at_home: dict):
    code, words = finish_found_job(toy, leave_a_job_that_is_past_a_unit_without_files(toy))
    assert code == 0, words
    assert "was past units whose files have gone since: 1, the first is square/1" in words
    first, second = toy.submitted()
    assert {first.state(task) for task in first.tasks()} == {"COMPLETED"} and second.tasks() == [0]
    assert toy.decisive() == at_home


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["3", "4"])
def test_a_unit_whose_task_failed_is_no_reason_for_a_new_job(toy: Toy, unit: str):
    """square/3 is done by the task that is past square/1, square/4 by the other one."""
    code, words = finish_found_job(toy, leave_a_job_that_is_past_a_unit_without_files(toy, TOY_FAULT=f"{unit}:die"))
    assert code == 1 and f"ended as FAILED without a result for square/{'1' if unit == '3' else '4'}" in words
    assert len(toy.submitted()) == 1


@pytest.mark.slow
def test_an_interruption_cancels_the_job_and_keeps_what_is_there(toy: Toy, at_home: dict):
    coordinator = toy.start(*SLURM, TOY_GATE=str(toy.folder / "gate"))
    wait_until(lambda: toy.results() == 2)
    os.kill(coordinator.pid, signal.SIGINT)
    words = coordinator.communicate(timeout=60)[0]
    assert coordinator.returncode == 130, words
    (job,) = toy.submitted()
    assert f"Slurm job {job.id} was cancelled" in words
    assert {job.state(task) for task in job.tasks()} == {"CANCELLED"}
    assert toy.results() == 2
    done = toy.run("--engine", "local")
    assert done.returncode == 0, done.stderr
    assert toy.decisive() == at_home


@pytest.mark.slow
def test_a_local_start_ends_the_job_that_a_killed_one_left(toy: Toy, at_home: dict):
    coordinator = toy.start(*SLURM, TOY_GATE=str(toy.folder / "gate"))
    wait_until(lambda: toy.results() == 2)
    os.killpg(coordinator.pid, signal.SIGKILL)
    coordinator.communicate()
    done = toy.run()
    assert done.returncode == 0, done.stderr
    (job,) = toy.submitted()
    assert f"Slurm job {job.id} of an earlier start was cancelled" in done.stdout
    assert {job.state(task) for task in job.tasks()} == {"CANCELLED"}
    assert toy.decisive() == at_home


@pytest.mark.long
def test_ray_makes_the_outputs_of_one_process_and_names_what_failed(toy: Toy, at_home: dict):
    ray = ["--engine", "ray", "--tasks", "2", "--memory_per_cpu_gb", "1", *PROMPT]
    mistake = toy.run(*ray, TOY_FAULT="2:user")
    assert (mistake.returncode, mistake.stderr) == (2, "error: numbers.txt:2 is not a number; put a number there\n")
    lost = toy.run(*ray, "--force", TOY_FAULT="3:defect")
    assert lost.returncode == 1 and "RuntimeError: a defect); its traceback is" in lost.stderr
    assert "a defect" in Path(re.search(r"its traceback is (\S+);", lost.stderr)[1]).read_text()
    killed = toy.run(*ray, "--force", TOY_FAULT="3:die")
    assert killed.returncode == 1
    assert "task 1 failed at square/3 (RuntimeError: its process ended by exit code 9)" in killed.stderr
    greedy = toy.run(*ray, "--memory_per_cpu_gb", "100000")
    assert greedy.returncode == 2 and "lower scale_out.cpus_per_task or scale_out.memory_per_cpu_gb" in greedy.stderr
    done = toy.run(*ray, "--force")
    assert done.returncode == 0, done.stderr + done.stdout
    assert toy.decisive() == at_home
    assert toy.manifest().run["engine"] == "ray"


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_an_interrupted_ray_run_leaves_nobody_behind_and_goes_on(toy: Toy, at_home: dict, number: int, code: int):
    import psutil

    ray = ["--engine", "ray", "--tasks", "2", "--memory_per_cpu_gb", "1", *PROMPT]
    coordinator = toy.start(*ray, TOY_GATE=str(toy.folder / "gate"))
    wait_until(lambda: toy.results() == 2, 120)
    family = psutil.Process(coordinator.pid).children(recursive=True)
    assert len(family) > 4
    os.kill(coordinator.pid, number)
    words = coordinator.communicate(timeout=60)[0]
    assert coordinator.returncode == code, words
    wait_until(lambda: not any(process.is_running() and process.status() != "zombie" for process in family), 30)
    done = toy.run(*ray)
    assert done.returncode == 0, done.stderr
    assert toy.decisive() == at_home


def test_the_plan_shows_who_would_do_the_work(toy: Toy):
    plan = toy.run("--plan", *SLURM).stdout
    assert "    scale_out.engine = 'slurm'  (--engine)" in plan and "    scale_out.time = '24:00:00'  (default)" in plan
    assert toy.submitted() == []


# -- without processes -------------------------------------------------------------------------------------------------


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    work = tmp_path / "work"
    work.mkdir()
    (work / "state.json").write_text(json.dumps({"fingerprint": "mine"}))
    jobs = tuple((f"square/{n}", (n, tmp_path / "out" / f"{n}.txt")) for n in range(7))
    return Batch("square", square, jobs, None, (), work / "scale_out" / "square", work, "mine")


@pytest.mark.parametrize("tasks", [1, 2, 3, 7])
def test_the_tasks_do_all_units_once(batch: Batch, tmp_path: Path, tasks: int):
    for task in reversed(range(tasks)):
        UnitsOfStep(batch).run(rank=task, world_size=tasks)
    assert [batch.result(key)["square"] for key, _ in batch.jobs] == [n * n for n in range(7)]
    UnitsOfStep(batch).run(rank=0, world_size=1)  # all have a result
    assert {path.read_text() for path in (tmp_path / "out").glob("*.done")} == {"done\n"}


def test_a_task_stops_when_the_work_folder_is_given_to_other_work(batch: Batch, tmp_path: Path):
    (batch.work / "state.json").write_text(json.dumps({"fingerprint": "another"}))
    with pytest.raises(StageFailure, match="has been given to other work"):
        UnitsOfStep(batch).run(rank=0, world_size=1)
    assert not (tmp_path / "out").exists() and batch.result("square/0") is None


def test_a_result_whose_file_was_moved_away_is_made_again(batch: Batch, tmp_path: Path):
    UnitsOfStep(batch).run()
    (tmp_path / "out" / "4.txt").unlink()
    assert gather._missing(batch, is_whole) == ["square/4"]
    assert batch.result("square/4") is None and batch.result("square/3") == {"square": 9}


class SilentCrew:
    """Tasks of which a scheduler says at first nothing, then that one of them is gone."""

    name = "Slurm job 7"

    def __init__(self, answers: list):
        self.answers = answers

    def may_work(self, task: int) -> bool | None:
        return self.answers.pop(0)

    def task_of(self, key: str) -> int:
        return 0

    def fate_of(self, task: int) -> str:
        return ""

    def passed_over(self, task: int) -> bool:
        return False

    def log_of(self, task: int) -> Path:
        return Path("7_0.out")


class FakeStage:
    """As much of a stage as waiting needs."""

    def __init__(self, batch: Batch):
        from pipeline_lib.config.run import RunConfig
        from pipeline_lib.stage.signals import SignalRequest

        quick = ScaleOutSettings(poll_seconds=0.001, patience_seconds=0)
        self.config, self.work, self.signals, self.said = RunConfig(scale_out=quick), batch.work, SignalRequest(), []

    def say(self, line: str) -> None:
        self.said.append(line)


def test_a_silent_scheduler_is_asked_again_and_an_end_without_result_is_a_failure(batch: Batch):
    stage = FakeStage(batch)
    crew = SilentCrew([None, None, True, None, False, False])
    with pytest.raises(StageFailure, match="Slurm job 7: task 0 is gone without a result for square/0; its log is 7_0"):
        gather._Watch(stage, batch, crew).waited_for("square/0")
    assert stage.said == ["  Slurm job 7: the scheduler does not answer; asking again"] * 2


def test_a_scheduler_that_stays_silent_ends_the_wait(batch: Batch, monkeypatch):
    monkeypatch.setattr(gather, "SILENCE_SECONDS", 0.0)
    with pytest.raises(StageFailure, match="has not answered for 0 minutes"):
        gather._Watch(FakeStage(batch), batch, SilentCrew([None] * 50)).waited_for("square/0")


def test_a_job_of_which_nothing_is_known_is_waited_for_and_not_done_twice(batch: Batch, tmp_path: Path, monkeypatch):
    """squeue fails while the scheduler restarts; a second job would do the work of the first one again."""
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2\nexit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    units = tuple(key for key, _ in batch.jobs)
    SlurmJob("7", 2, units, tmp_path).write(batch.folder / "job.json")
    stage = FakeStage(batch)
    job = find_or_submit(stage, batch, list(units[3:]))
    assert (job.id, job.task_of(units[4]), job.may_work(0)) == ("7", 0, None)
    assert stage.said == ["  Slurm job 7 of an earlier start is perhaps at work"]
    assert job.cancel() == "could not be cancelled from here; if it is still at work, end it with: scancel 7"


def test_without_sbatch_or_ray_one_line_says_what_to_do(toy: Toy, monkeypatch):
    for name in ("sbatch", "squeue"):
        (toy.jobs.parent / name).unlink(missing_ok=True)
        done = toy.run(*SLURM)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "there is no sbatch on this machine's PATH" in done.stderr
    monkeypatch.setattr(on_ray.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="the package ray is not installed; install it with: pip install"):
        on_ray.require()


def test_a_job_has_no_more_tasks_than_units(batch: Batch):
    settings = ScaleOutSettings(engine="slurm", partition="cpu", tasks=1000)
    assert executor_of(settings, batch, "toy").tasks == 7
    assert executor_of(settings.model_copy(update={"tasks": 3}), batch, "toy").tasks == 3
    assert executor_of(settings, batch.only(["square/2", "square/5"]), "toy").tasks == 2


def test_nodes_get_the_setup_first_and_need_datatroves_launcher(monkeypatch, tmp_path: Path):
    settings = ScaleOutSettings(setup=["module load gcc"])
    assert environment(settings)[0] == "module load gcc"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UserError, match="launch_pickled_pipeline is missing; install requirements.txt"):
        environment(settings)


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("{engine: slurm}", "needs a `partition`"),
        ("{engine: slurm, partition: cpu, time: 4:00:00}", "put the time limit in quotation marks"),
        ("{engine: slurm, partition: cpu, time: soon}", "scale_out.time"),
        ("{engine: slrum}", "scale_out.engine"),
        ("{tasks: 1001}", "scale_out.tasks"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, yaml: str, words: str):
    config = tmp_path / "wrong.yaml"
    config.write_text(f"scale_out: {yaml}\n")
    with pytest.raises(UserError, match=re.escape(words)):
        load_config(config)
