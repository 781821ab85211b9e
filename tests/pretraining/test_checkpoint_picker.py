"""The checkpoints of a run as a table, and one of them as a model."""

import filecmp
import json
import shutil

import pytest

from pipeline_lib.checkpoints import folders, survey
from pipeline_lib.reporting import checkpoints


@pytest.fixture(scope="module")
def trained(packed_run, launcher, tmp_path_factory):
    """(configuration, run folder) with stage 05 finished; do not write into it."""
    run = tmp_path_factory.mktemp("picker") / "run"
    shutil.copytree(packed_run[1], run)
    config = packed_run[0]
    assert launcher.start(config, run).code == 0
    return config, run


def call(trained, *flags):
    return checkpoints.main(["--config", str(trained[0]), "--run-dir", str(trained[1]), *map(str, flags)])


def test_the_table_names_steps_scores_and_the_best(trained, capsys):
    rows = checkpoints.rows_of(trained[1])
    steps = [row.step for row in rows]
    assert steps == sorted(steps, reverse=True) and len(steps) >= 2 and not any(row.problem for row in rows)
    lines = [json.loads(line) for line in (trained[1] / "05_pretrain" / "metrics.jsonl").read_text().splitlines()]
    measured = {line["step"]: line["val_bits_per_byte"] for line in lines if "val_bits_per_byte" in line}
    assert all(row.score == measured[row.step] for row in rows if row.score is not None)
    best = checkpoints.best_of(rows)
    assert best.score == min(measured[step] for step in measured if step in steps)
    assert call(trained) == 0
    shown = capsys.readouterr().out
    assert shown.count("whole") == len(rows) and shown.count("whole, best") == 1 and f"{best.score:.4f}" in shown


def test_the_model_of_the_last_step_is_the_final_one(trained, tmp_path):
    assert call(trained, "--export", "last", "--to", tmp_path / "model") == 0
    final = trained[1] / "05_pretrain" / "final"
    names = sorted(file.name for file in final.iterdir())
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == names
    assert filecmp.cmpfiles(final, tmp_path / "model", names, shallow=False) == (names, [], [])


def test_an_earlier_step_is_another_model_with_the_score_of_its_step(trained, tmp_path):
    from safetensors.torch import load_file

    row = checkpoints.rows_of(trained[1])[-1]
    assert call(trained, "--export", row.step, "--to", tmp_path / "model") == 0
    exported = load_file(tmp_path / "model" / "model.safetensors")
    saved = load_file(row.path / "model.safetensors")
    assert exported.keys() == saved.keys() and all(exported[name].equal(saved[name]) for name in saved)


def test_a_damaged_checkpoint_is_named_and_not_taken(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained[1], run)
    newest = checkpoints.rows_of(run)[0]
    weights = bytearray((newest.path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (newest.path / "model.safetensors").write_bytes(weights)
    (newest.path.parent / "step-unfinished").mkdir()
    damaged = (trained[0], run)
    assert [found.problem is None for found in survey(newest.path.parent)].count(False) == 1
    assert call(damaged) == 0
    assert "does not match its digest" in capsys.readouterr().out.replace("\n", " ")
    assert call(damaged, "--export", newest.step, "--to", tmp_path / "model") == 2
    assert f"--export {newest.step}: no whole checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--export", "last"), "belong together"),
        (("--to", "there"), "belong together"),
        (("--export", "1000000", "--to", "there"), "no whole checkpoint of that step"),
        (("--export", "newest", "--to", "there"), "no whole checkpoint of that step"),
    ],
)
def test_what_cannot_be_asked_for(trained, capsys, flags, says):
    assert call(trained, *flags) == 2
    assert says in capsys.readouterr().err


def test_nothing_is_overwritten_and_a_run_without_checkpoints_says_so(trained, packed_run, tmp_path, capsys):
    assert call(trained, "--export", "last", "--to", tmp_path) == 2
    assert "is there already" in capsys.readouterr().err
    assert call(packed_run) == 2
    assert "holds no checkpoint" in capsys.readouterr().err


def test_a_checkpoint_that_training_removes_meanwhile_is_no_damage(trained, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(trained[1], run)
    rows = checkpoints.rows_of(run)
    digest = folders.file_digest

    def removing(path):
        shutil.rmtree(rows[-1].path, ignore_errors=True)
        return digest(path)

    monkeypatch.setattr(folders, "file_digest", removing)
    assert [row.step for row in checkpoints.rows_of(run)] == [row.step for row in rows[:-1]]
    assert all(row.bytes > 1000 and row.problem is None for row in rows)
