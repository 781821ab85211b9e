"""One small run to compare on, and stage 05 as a contender: a subprocess, judged by the files it leaves."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .turns import Ran, Turns

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
    """Where a contender arrived: bits per byte against training seconds (validation not counted), and tokens read.

    beginning: seconds of the first two steps, in which it may compile; step: seconds of a later one.
    """

    seconds: float
    bits_per_byte: float
    tokens: int
    curve: list[tuple[float, float]]
    beginning: float = 0.0
    step: float = 0.0

    @classmethod
    def of(cls, ran: Ran, steps: list[tuple[float, float]], values: list[tuple[int, float]], tokens: int) -> "Result":
        """Return the result of steps, (start, end) each in Unix seconds, and the values after so many of them."""
        times = [ran.seconds(*step) for step in steps]
        curve = [(round(sum(times[:after]), 1), round(value, 4)) for after, value in values]
        later = times[4:] or times
        return cls(sum(times), values[-1][1], tokens, curve, sum(times[:2]), sum(later) / len(later))


def prepare_run(folder: Path) -> Path:
    """Return the configuration of a run in `folder` whose stages 01 to 04 are finished, finishing them if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "benchmark.yaml"
    config.write_text(CONFIG.format(base=ROOT / "configs" / "demo.yaml"))
    for stage in ("01_download_data", "02_clean_deduplicate", "03_tokenize_and_pack", "04_init_model"):
        command = [sys.executable, str(ROOT / "scripts" / f"{stage}.py"), "--config", str(config)]
        subprocess.run([*command, "--run-dir", str(folder)], check=True, stdout=sys.stderr)
    return config


def run_ours(
    turns: Turns, config: Path, run: Path, tokens: int, seed: int, *flags: str, validations: int = 6
) -> Result:
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
        ran = turns.run(command, {"OMP_WAIT_POLICY": "ACTIVE", **os.environ})
        return read_result(ran, copy / "05_pretrain")


def batch_tokens(flags: tuple[str, ...]) -> int:
    """Return the tokens of a step: of the flags, or the demo's."""
    return int(flags[flags.index("--batch_tokens") + 1]) if "--batch_tokens" in flags else 4096


def read_result(ran: Ran, folder: Path) -> Result:
    """Return the result of a finished stage 05; a step's validation is the last that happens in it."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = [json.loads(line) for line in (folder / "timings.jsonl").read_text().splitlines()]
    steps = [(time["at"] - time["seconds"], time["at"] - time.get("validation", 0.0)) for time in times if time["step"]]
    values = [(line["step"], line["val_bits_per_byte"]) for line in metrics if "val_bits_per_byte" in line]
    manifest = json.loads((folder / "manifest.json").read_text())
    return Result.of(ran, steps, values, manifest["result"]["tokens"])


def run_peer(turns: Turns, program: str, python: str = sys.executable, **arguments: object) -> Result:
    """Run a peer's program beside this file and return its result, which it prints as the last line, JSON."""
    command = [python, str(FOLDER / program), json.dumps(arguments, default=str)]
    ran = turns.run(command, {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "HF_HUB_OFFLINE": "1"})
    return Result.of(ran, **json.loads(ran.output.splitlines()[-1]))
