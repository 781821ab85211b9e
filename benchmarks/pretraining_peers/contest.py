"""One small run to compare on, and stage 05 as a contender: a subprocess, judged by the files it leaves."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
CONTEXT = 512
CONFIG = """
base: {base}
model: {{shape: {{layers: 4, width: 192, heads: 3}}, tie_embeddings: false}}
pretrain: {{tokens: null, optimizer: {{lr: null, embedding_lr: null, head_lr: null}}, validation_tokens: 60000}}
"""
"""The demo's text and tokenizer; two tables, as litgpt makes them; learning rates by rule, for any model."""


@dataclass(frozen=True)
class Result:
    """Where a contender arrived: bits per byte against training seconds (validation not counted), and tokens read."""

    seconds: float
    bits_per_byte: float
    tokens: int
    curve: list[tuple[float, float]]


def prepare_run(folder: Path) -> Path:
    """Return the configuration of a run in `folder` whose stages 01 to 04 are finished, finishing them if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "benchmark.yaml"
    config.write_text(CONFIG.format(base=ROOT / "configs" / "demo.yaml"))
    for stage in ("01_download_data", "02_clean_deduplicate", "03_tokenize_and_pack", "04_init_model"):
        command = [sys.executable, str(ROOT / "scripts" / f"{stage}.py"), "--config", str(config)]
        subprocess.run([*command, "--run-dir", str(folder)], check=True, stdout=sys.stderr)
    return config


def run_ours(config: Path, run: Path, tokens: int, seed: int, *flags: str, validations: int = 6) -> Result:
    """Train for `tokens` tokens in a fresh copy of the run and return the result.

    Validation is not counted as time; everything else between the first step and the last one is.
    """
    with tempfile.TemporaryDirectory(dir=run.parent) as place:
        copy = Path(place) / "run"
        copy.mkdir()
        for stage in ("03_packed", "04_init"):
            shutil.copytree(run / stage, copy / stage)
        steps = max(1, tokens // batch_tokens(flags))
        every = ["--validation_steps", str(max(1, steps // validations))]
        command = [sys.executable, str(ROOT / "scripts" / "05_pretrain.py"), "--config", str(config)]
        command += ["--run-dir", str(copy), "--tokens", str(tokens), "--seed", str(seed), *every, *flags]
        # The machine is ours alone, so waiting threads may spin (docs/pretraining.md), as the peers' do.
        environment = {"OMP_WAIT_POLICY": "ACTIVE", **os.environ}
        subprocess.run(command, check=True, stdout=sys.stderr, env=environment)
        return read_result(copy / "05_pretrain")


def batch_tokens(flags: tuple[str, ...]) -> int:
    """Return the tokens of a step: of the flags, or the demo's."""
    return int(flags[flags.index("--batch_tokens") + 1]) if "--batch_tokens" in flags else 4096


def read_result(folder: Path) -> Result:
    """Return the result of a finished stage 05."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = [json.loads(line) for line in (folder / "timings.jsonl").read_text().splitlines()]
    spent, curve = 0.0, []
    for line, time in zip(metrics, times, strict=True):
        if line["step"]:
            spent += time["seconds"] - time.get("validation", 0.0)
        if "val_bits_per_byte" in line:
            curve.append((round(spent, 1), round(line["val_bits_per_byte"], 4)))
    manifest = json.loads((folder / "manifest.json").read_text())
    return Result(spent, curve[-1][1], manifest["result"]["tokens"], curve)


def run_peer(program: str, python: str = sys.executable, **arguments: object) -> Result:
    """Run a peer's program beside this file and return its result, which it prints as the last line, JSON."""
    command = [python, str(FOLDER / program), json.dumps(arguments, default=str)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Result(**json.loads(done.stdout.splitlines()[-1]))
