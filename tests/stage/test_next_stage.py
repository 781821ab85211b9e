"""The card's `next:` names the first later stage that a start would not find up to date."""

import os
from pathlib import Path

import pytest

from pipeline_lib.config.run import RunConfig
from pipeline_lib.stage import Stage
from pipeline_lib.stage.catalog import BY_NAME, STAGES
from pipeline_lib.stage.freshness import fingerprint_of, next_to_make
from pipeline_lib.stage.manifest import MANIFEST, Manifest
from pipeline_lib.stage.stage import describe_files


def open_stage(run: Path, name: str, config: RunConfig) -> Stage:
    return Stage(BY_NAME[name], config, run, 1, "")


def finish(run: Path, name: str, config: RunConfig, output: str = "made", data: dict | None = None) -> None:
    """Publish a stage that made one file from what lies there now."""
    stage = open_stage(run, name, config)
    (stage.folder / "files").mkdir(parents=True, exist_ok=True)
    (stage.folder / "files" / "output").write_text(f"{name} {output}")
    fingerprint = {**fingerprint_of(stage, stage.spec, None), "data": data or {}}
    manifest = Manifest(name, fingerprint, describe_files(stage.folder / "files", "files"), {}, {}, [], 0)
    manifest.run["seen"] = {file: manifest.stat_of(stage.folder / file) for file in manifest.files}
    manifest.write(stage.folder / MANIFEST)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for spec in STAGES:
        finish(tmp_path, spec.name, RunConfig())
    return tmp_path


def following(run: Path, name: str, config: RunConfig | None = None) -> str | None:
    spec = next_to_make(open_stage(run, name, config or RunConfig()))
    return spec and spec.name


def test_nothing_is_next_when_every_later_stage_is_up_to_date(run: Path):
    assert [following(run, spec.name) for spec in STAGES] == [None] * len(STAGES)


def test_stages_that_are_done_are_passed_over(run: Path):
    finish(run, "07_sft", RunConfig(), "made anew")
    assert following(run, "07_sft") == "09_dpo", "08_dpo_data does not read 07_sft"
    finish(run, "03_packed", RunConfig(), "made anew")
    assert following(run, "03_packed") == "04_init"


@pytest.mark.parametrize("change", ["removed", "touched", "no manifest", "unfinished by force", "input"])
def test_a_stage_that_would_do_something_is_named(run: Path, change: str):
    folder = run / "06_reasoning_data"
    if change == "removed":
        (folder / "files" / "output").unlink()
    elif change == "touched":
        os.utime(folder / "files" / "output", (1, 1))
    elif change == "no manifest":
        (folder / MANIFEST).unlink()
    elif change == "input":
        (run / "03_packed" / MANIFEST).unlink()
    else:
        from pipeline_lib.stage.workspace import Workspace

        stage = open_stage(run, "06_reasoning_data", RunConfig())
        fingerprint = fingerprint_of(stage, stage.spec, None)
        Workspace(folder, fingerprint).open(fresh=True, keep_superseded=False, say=print)
    first = "06_sft_data" if change == "input" else "06_reasoning_data"
    assert following(run, "05_pretrain") == first


def test_other_settings_of_a_later_stage_make_it_the_next(run: Path):
    assert following(run, "06_sft_data", RunConfig(dpo={"beta": 0.7})) == "09_dpo"


def test_a_stage_with_data_outside_of_the_run_is_not_known_to_be_up_to_date(run: Path):
    finish(run, "11_eval", RunConfig(), data={"task.yaml": "digest"})
    assert following(run, "05_pretrain") == "11_eval"


def test_a_run_that_starts_from_a_packed_cache_has_no_stages_before_it(run: Path):
    (run / "02_clean" / MANIFEST).unlink()
    assert following(run, "01_download") == "02_clean"
    assert following(run, "01_download", RunConfig(packed=str(run / "03_packed"))) not in ("02_clean", "03_packed")
