"""A source that grows: files added at its end leave every older shard and chunk as it is, through stages 01 to 03."""

import json
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from pipeline_lib.stage.manifest import MANIFEST, Manifest

WORDS = ["the", "river", "and", "stone", "of", "market", "with", "window", "to", "morning", "letter", "that", "garden"]
SCRIPTS = ("01_download_data.py", "02_clean_deduplicate.py", "03_tokenize_and_pack.py")


def write_files(folder: Path, first: int, last: int) -> None:
    for number in range(first, last):
        rng = random.Random(number)
        text = "\n".join(" ".join(rng.choices(WORDS, k=12)).capitalize() + "." for _ in range(8))
        (folder / f"{number:05d}.jsonl").write_text(json.dumps({"text": text}) + "\n")


def run_all(scripts: Path, config: Path, folder: Path) -> dict[str, str]:
    """Run the three stages; return {stage/file: digest} of what they published."""
    for script in SCRIPTS:
        command = [sys.executable, str(scripts / script), "--config", str(config), "--run-dir", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    stages = ("01_download", "02_clean", "03_packed")
    manifests = {name: Manifest.read(folder / name / MANIFEST) for name in stages}
    return {f"{name}/{file}": entry.digest for name in stages for file, entry in manifests[name].files.items()}


def lasting(names: dict[str, str]) -> list[str]:
    return [name for name in names if "part-" in name or "chunks/" in name or "tokenizer/" in name]


@pytest.mark.long
@pytest.mark.parametrize("ends", [[256, 300], [10, 11, 12]], ids=["a full unit", "a few files and one more, twice"])
def test_added_files_become_new_shards_and_chunks_and_change_no_old_one(tmp_path, scripts, ends):
    data = tmp_path / "data"
    data.mkdir()
    config = tmp_path / "grow.yaml"
    source = {"name": "growing", "kind": "text", "type": "local", "paths": [str(data)]}
    config.write_text(
        yaml.safe_dump(
            {
                "run": "grow",
                "download": {"sources": [source]},
                "clean": {"quality_rules": [], "language": {"keep": []}, "contamination": {"enabled": False}},
                "pack": {"vocab_size": 300, "contexts": [64], "chunk_tokens": 1000, "val_fraction": 0},
            }
        )
    )
    write_files(data, 0, ends[0])
    before = run_all(scripts, config, tmp_path / "run")
    assert len([name for name in before if "chunks/" in name]) > 1
    for step, (first, last) in enumerate(pairwise(ends), 1):
        write_files(data, first, last)
        after = run_all(scripts, config, tmp_path / "run")
        assert {name: after.get(name) for name in lasting(before)} == {name: before[name] for name in lasting(before)}
        added = set(after) - set(before)
        assert {f"01_download/part-{step:05d}.parquet", f"02_clean/part-{step:05d}.parquet"} <= added
        assert any("chunks/" in name for name in added)
        before = after
