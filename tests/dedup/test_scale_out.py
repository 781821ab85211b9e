"""The same kept set from datatrove's engines as from one process, and Slurm scripts that do the work when run."""

import stat
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dedup import DedupParameters, fuzzy_dedup
from dedup.corpus import Corpus
from dedup.scale_out import DedupStep, ScaledRun, dedup_at_scale, executors
from pipeline_lib.stage import StageFailure, UserError

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def corpus(oracle, tmp_path):
    return Corpus(tuple(oracle.write_shards(tmp_path / "in", oracle.Planted(seed=44).records, 5, row_group=11)))


def contents(folder: Path) -> dict[str, list]:
    return {path.name: pq.read_table(path).to_pylist() for path in sorted(folder.glob("*.parquet"))}


STEPS = ["sketch", "exact", "bands", "group", "sets", "resolve", "decide", "filter", "clean"]
LOGS = [f"log-{number}-{step}" for number, step in enumerate(STEPS)]


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / ".dedup-work").iterdir())


def expected(corpus, tmp_path) -> dict[str, list]:
    fuzzy_dedup(tmp_path / "in", tmp_path / "one_process", one_file=False)
    return contents(tmp_path / "one_process")


@pytest.mark.long
@pytest.mark.parametrize(("engine", "tasks"), [("local", 1), ("local", 3), ("ray", 2)])
def test_an_engine_keeps_what_one_process_keeps(corpus, tmp_path, engine, tasks, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(SCRIPTS))
    if engine == "ray":
        ray = pytest.importorskip("ray")
        ray.init(num_cpus=2, include_dashboard=False)
    dedup_at_scale(corpus, tmp_path / "out", DedupParameters(), engine, tasks, 2, options=ray_options(engine))
    assert contents(tmp_path / "out") == expected(corpus, tmp_path)
    assert left_in(tmp_path / "out") == LOGS


@pytest.mark.long
def test_on_ray_a_step_that_fails_ends_the_run_with_its_words_at_once_and_in_a_used_folder(tmp_path, monkeypatch):
    """The guard stops `decide`; marks of an earlier run in the same folder are not taken for today's."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(SCRIPTS))
    ray.init(num_cpus=2, include_dashboard=False, ignore_reinit_error=True)

    def corpus_of(name: str, texts: list[str]) -> Corpus:
        (tmp_path / name).mkdir()
        pq.write_table(pa.table({"text": texts, "source": ["s"] * len(texts)}), tmp_path / name / "a.parquet")
        return Corpus((tmp_path / name / "a.parquet",))

    different = [" ".join(f"word{number}-{place}" for place in range(40)) for number in range(60)]
    fine, copies = corpus_of("fine", different), corpus_of("copies", different[:2] * 80)
    options = ray_options("ray")
    for folder in ("fresh", "used"):
        if folder == "used":
            dedup_at_scale(fine, tmp_path / folder, DedupParameters(), "ray", 2, 2, options=options)
        with pytest.raises(StageFailure, match="(?s)step decide failed: .*would lose"):
            dedup_at_scale(copies, tmp_path / folder, DedupParameters(), "ray", 2, 2, options=options)


def ray_options(engine: str) -> dict:
    return {"mem_per_cpu_gb": 0.5} if engine == "ray" else {}


FAKE_SBATCH = """#!{python}
import os, re, subprocess, sys
script = sys.stdin.read() if not os.path.exists(sys.argv[-1]) else open(sys.argv[-1]).read()
folder = {folder!r}
number = len(os.listdir(folder))
open(f"{{folder}}/{{number}}.slurm", "w").write(script)
subprocess.run(["bash", "-n"], input=script, text=True, check=True)
if "merge_stats" not in script:
    low, high = map(int, re.search(r"--array=(\\d+)-(\\d+)", script).groups())
    for task in range(low, high + 1):
        environment = dict(os.environ, SLURM_ARRAY_TASK_ID=str(task), SLURM_NODELIST="localhost", SLURM_JOB_ID="1")
        subprocess.run(["bash"], input=script, text=True, check=True, env=environment, stdout=sys.stderr)
print("Submitted batch job", number + 1)
"""


@pytest.mark.long
def test_the_slurm_scripts_do_the_work_when_a_scheduler_runs_them(corpus, tmp_path, monkeypatch):
    """A stand-in `sbatch` checks each script's syntax, keeps it, and runs its array; `srun` runs its command."""
    tools, submitted = tmp_path / "tools", tmp_path / "submitted"
    tools.mkdir(), submitted.mkdir()
    programs = {
        "sbatch": FAKE_SBATCH.format(python=sys.executable, folder=str(submitted)),
        "srun": '#!/bin/bash\nwhile [[ "$1" == -* ]]; do [[ "$1" == -n ]] && shift; shift; done\nexec "$@"\n',
        "scontrol": "#!/bin/bash\necho localhost\n",
    }
    for name, text in programs.items():
        (tools / name).write_text(text)
        (tools / name).chmod((tools / name).stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")  # the scripts say where the rest is
    monkeypatch.delenv("PYTHONPATH", raising=False)
    options = {"partition": "cpu", "time": "01:00:00", "qos": "", "env_command": "export MINE=1"}
    dedup_at_scale(corpus, tmp_path / "out", DedupParameters(), "slurm", 2, options=options)
    assert contents(tmp_path / "out") == expected(corpus, tmp_path)
    assert left_in(tmp_path / "out") == LOGS
    scripts = [path.read_text() for path in sorted(submitted.iterdir(), key=lambda path: int(path.stem))]
    jobs = [script for script in scripts if "launch_pickled_pipeline" in script]
    assert [script.split("--job-name=")[1].split("\n")[0] for script in jobs] == [f"dedup-{step}" for step in STEPS]
    assert all("#SBATCH --partition=cpu" in script for script in jobs)
    single = ("exact", "group", "decide", "clean")
    assert ["--array=0-1" in script for script in jobs] == [step not in single for step in STEPS]
    assert all(script.index("export PYTHONPATH=") < script.index("export MINE=1\n") for script in jobs)
    assert subprocess.run(["bash", "-n"], input=jobs[0], text=True, check=True).returncode == 0


def test_each_step_waits_for_the_one_before(corpus, tmp_path):
    run = ScaledRun(corpus, tmp_path / "out", DedupParameters())
    made = executors(run, "local", 4, 2)
    assert [executor.depends for executor in made] == [None, *made[:-1]]
    assert [executor.tasks for executor in made] == [4, 1, 4, 1, 4, 4, 1, 4, 1]


def test_ranks_do_all_units_once(corpus, tmp_path):
    run = ScaledRun(corpus, tmp_path / "out", DedupParameters())
    for executor in executors(run, "local", 3, 1):
        for rank in reversed(range(executor.tasks)):
            executor.pipeline[0].run(rank=rank, world_size=executor.tasks)
    assert contents(tmp_path / "out") == expected(corpus, tmp_path)
    assert not (tmp_path / "out" / ".dedup-work").exists()


def test_a_step_whose_folder_another_run_has_taken_stops(corpus, tmp_path):
    """As jobs of a scheduler would: nobody holds a lock for them after they were submitted."""
    first, second = (ScaledRun(corpus, tmp_path / "out", DedupParameters(jaccard=value)) for value in (0.8, 0.9))
    for step in ("sketch", "exact", "bands"):
        DedupStep(first, step).run()
    for step in ("sketch", "exact"):
        DedupStep(second, step).run()
    for step in STEPS[2:]:
        with pytest.raises(StageFailure, match=r"\.dedup-work holds the work of another run"):
            DedupStep(first, step).run()
    for step in STEPS[2:]:
        DedupStep(second, step).run()
    fuzzy_dedup(tmp_path / "in", tmp_path / "one_process", DedupParameters(jaccard=0.9), one_file=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "one_process")


def test_an_output_in_which_another_process_works_is_refused(corpus, tmp_path, held_elsewhere):
    holder = held_elsewhere(tmp_path / "out" / ".dedup-work")
    with pytest.raises(UserError, match=f"is being written by process {holder}"):
        dedup_at_scale(corpus, tmp_path / "out", DedupParameters(), "local", 1, 1)
    assert contents(tmp_path / "out") == {}


def test_unusable_engines_options_and_files_are_refused(corpus, tmp_path):
    run = ScaledRun(corpus, tmp_path / "out", DedupParameters())
    with pytest.raises(UserError, match="choose one of local, slurm, ray"):
        executors(run, "spark", 1, 1)
    with pytest.raises(UserError, match="needs the options partition and time"):
        executors(run, "slurm", 1, 1)
    with pytest.raises(UserError, match="engine local has no option 'mem_per_cpu_gb' to set; it has .*start_method"):
        executors(run, "local", 1, 1, {"mem_per_cpu_gb": 2})
    for name in ("partitoin", "logging_dir", "condaenv"):
        with pytest.raises(UserError, match=f"engine slurm has no option '{name}' to set; it has .*env_command"):
            executors(run, "slurm", 1, 1, {"partition": "cpu", "time": "1:00:00", name: "x"})
    with pytest.raises(UserError, match="does not exist"):
        executors(ScaledRun(Corpus((tmp_path / "no.parquet",)), tmp_path, DedupParameters()), "local", 1, 1)
    with pytest.raises(UserError, match="would overwrite .*part-00000.parquet, which is read"):
        executors(ScaledRun(corpus, tmp_path / "in", DedupParameters()), "local", 1, 1)
