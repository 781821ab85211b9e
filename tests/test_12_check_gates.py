"""`python scripts/12_check_gates.py` as a user meets it: exit codes, files, and what it refuses to load."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline_lib.stage.catalog import BY_NAME
from pipeline_lib.stage.digests import file_digest
from pipeline_lib.stage.manifest import FileEntry, Manifest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "12_check_gates.py"
RESULTS = {
    "models": {
        "sft": {"quiz": {"accuracy": {"value": 0.4, "low": 0.3, "high": 0.5, "n": 90, "higher_is_better": True}}}
    },
    "comparisons": {},
    "training": {},
}
GATES = """gates:
  - {name: above chance, group: sft, metric: sft.quiz.accuracy, direction: higher, threshold: 0.25, use: low}
  - {name: great, group: later, metric: sft.quiz.accuracy, direction: higher, threshold: THRESHOLD, use: low}
"""


@pytest.fixture
def run(tmp_path):
    """A run whose stage 11 has finished, a configuration, and a gate file that the run passes."""
    evaluation = tmp_path / "run" / "11_eval"
    evaluation.mkdir(parents=True)

    def write_results(text, inputs=None):
        path = evaluation / "results.json"
        path.write_text(text, "utf-8")
        files = {"results.json": FileEntry(path.stat().st_size, file_digest(path))}
        fingerprint = {"inputs": inputs or {}, "settings": {}, "seed": 42, "data": {}, "code": {}}
        Manifest("11_eval", fingerprint, files, {}, {}, [], 0, {}).write(evaluation / "manifest.json")

    write_results(json.dumps(RESULTS))
    (tmp_path / "gates.yaml").write_text(GATES.replace("THRESHOLD", "0.2"), "utf-8")
    (tmp_path / "config.yaml").write_text(f"gates:\n  file: {tmp_path / 'gates.yaml'}\n", "utf-8")
    return Run(tmp_path, write_results)


class Run:
    def __init__(self, folder, write_results):
        self.folder, self.write_results = folder, write_results
        self.verdicts = folder / "run" / "12_gates"

    def check(self, *flags):
        command = [
            sys.executable,
            SCRIPT,
            "--config",
            self.folder / "config.yaml",
            "--run-dir",
            self.folder / "run",
            *flags,
        ]
        return subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd="/", check=False)

    def demand(self, threshold):
        (self.folder / "gates.yaml").write_text(GATES.replace("THRESHOLD", threshold), "utf-8")


def test_there_is_no_verdict_on_a_model_that_has_been_made_anew_since_it_was_evaluated(run):
    model = run.folder / "run" / "10_lora" / "manifest.json"
    model.parent.mkdir()
    Manifest("10_lora", {"inputs": {}}, {"merged/a": FileEntry(1, "new")}, {}, {}, [], 0, {}).write(model)
    evaluated = Manifest.read(model).outputs_digest
    run.write_results(json.dumps(RESULTS), {"10_lora": evaluated})
    assert run.check().returncode == 0
    Manifest("10_lora", {"inputs": {}}, {"merged/a": FileEntry(1, "newer")}, {}, {}, [], 0, {}).write(model)
    for flags in ((), ("--force",)):
        done = run.check(*flags)
        assert done.returncode == 2, "not even when the verdict is up to date with the evaluation"
        assert not list(run.verdicts.glob("gates.*")), "an earlier verdict must not be taken for today's"
        assert "11_eval was made from an earlier 10_lora; make it again with: python scripts/11_eval" in done.stderr


def test_the_runs_own_packed_cache_does_not_count_where_the_yaml_names_another(run):
    own = run.folder / "run" / "03_packed" / "manifest.json"
    own.parent.mkdir()
    Manifest("03_packed", {"inputs": {}}, {"index.json": FileEntry(1, "own")}, {}, {}, [], 0, {}).write(own)
    run.write_results(json.dumps(RESULTS), {"03_packed": "digest of the other cache"})
    assert run.check().returncode == 2
    config = run.folder / "config.yaml"
    config.write_text(config.read_text("utf-8") + f"packed: {run.folder / 'other' / '03_packed'}\n", "utf-8")
    done = run.check()
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_run_that_passes_exits_0_and_writes_three_files(run):
    done = run.check()
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((run.verdicts / "gates.json").read_text())["passed"] is True
    assert set(Manifest.read(run.verdicts / "manifest.json").files) == set(BY_NAME["12_gates"].verdict_files)
    assert (run.verdicts / "gates.md").exists() and (run.verdicts / "gates.junit.xml").exists()
    assert run.check().stdout.strip().endswith("up to date")


def test_a_failing_gate_exits_1_with_its_verdict_files_and_again_when_up_to_date(run):
    run.demand("0.9")
    for expected in ("FAIL  great", "up to date"):
        done = run.check()
        assert done.returncode == 1 and expected in done.stdout, done.stdout + done.stderr
        content = json.loads((run.verdicts / "gates.json").read_text())
        assert content["passed"] is False and content["failed"] == ["great"]


def test_editing_the_gate_file_makes_the_verdict_stale(run):
    assert run.check().returncode == 0
    run.demand("0.9")
    assert run.check().returncode == 1
    run.demand("0.2")
    assert run.check().returncode == 0


def test_one_group_is_checked_alone(run):
    run.demand("0.9")
    assert run.check("--only", "sft").returncode == 0
    said = {"json": '"only": "sft"', "md": "only the group sft", "junit.xml": 'name="gates (only sft)"'}
    for ending, words in said.items():
        assert words in (run.verdicts / f"gates.{ending}").read_text("utf-8"), ending
    assert run.check("--only", "later").returncode == 1
    nothing = run.check("--only", "nothing")
    assert nothing.returncode == 2 and "no gates of the group 'nothing'" in nothing.stderr


def test_a_metric_that_is_missing_null_or_nan_fails(run):
    for value in (None, float("nan"), True):
        changed = json.loads(json.dumps(RESULTS))
        changed["models"]["sft"]["quiz"]["accuracy"]["low"] = value
        run.write_results(json.dumps(changed))
        assert run.check().returncode == 1
    run.write_results(json.dumps({"models": {}}))
    done = run.check()
    assert done.returncode == 1 and "metric missing" in done.stdout


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_results_that_are_not_an_object_exit_2(run, text):
    run.write_results(text)
    done = run.check()
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "results.json" in done.stderr


def test_a_missing_or_invalid_gate_file_exits_2_in_one_line(run):
    run.demand("high")
    done = run.check()
    assert done.returncode == 2 and "gates.yaml:3" in done.stderr and done.stderr.count("\n") == 1
    (run.folder / "gates.yaml").unlink()
    done = run.check()
    assert done.returncode == 2 and "does not exist" in done.stderr and "Traceback" not in done.stderr


def test_a_missing_or_damaged_evaluation_exits_2_with_the_repairing_command(run):
    (run.folder / "run" / "11_eval" / "results.json").write_text("{}")
    done = run.check()
    assert done.returncode == 2 and "11_evaluate.py" in done.stderr
    (run.folder / "run" / "11_eval" / "manifest.json").unlink()
    done = run.check()
    assert done.returncode == 2 and "11_evaluate.py" in done.stderr


@pytest.mark.parametrize("harm", ["cut", "gone", "not json"])
def test_results_that_went_bad_withdraw_the_verdict_that_was_given_on_them(run, harm):
    results = run.folder / "run" / "11_eval" / "results.json"
    verdict = run.folder / "run" / "12_gates" / "gates.junit.xml"
    assert run.check().returncode == 0 and verdict.exists()
    if harm == "cut":
        results.write_bytes(results.read_bytes()[:-1])
    elif harm == "gone":
        results.unlink()
    else:
        run.write_results("{")
    assert run.check().returncode == 2
    assert not verdict.exists()


@pytest.mark.parametrize("manifest", [None, b"{"])
def test_a_verdict_whose_manifest_is_gone_or_damaged_is_withdrawn_too(run, manifest):
    """As a kill in the midst of a withdrawal could leave it, or a disk that went bad."""
    assert run.check().returncode == 0
    path = run.verdicts / "manifest.json"
    path.unlink()
    if manifest is not None:
        path.write_bytes(manifest)
    run.write_results("{")
    assert run.check().returncode == 2
    assert not path.exists() and not list(run.verdicts.glob("gates.*"))


def test_neither_torch_nor_transformers_nor_lm_eval_nor_numpy_is_loaded(run):
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "importtime",
            str(SCRIPT),
            "--config",
            str(run.folder / "config.yaml"),
            "--run-dir",
            str(run.folder / "run"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "pipeline_lib.gates.verdict" in loaded
    assert not loaded & {"torch", "transformers", "lm_eval", "datasets", "numpy", "pyarrow"}
