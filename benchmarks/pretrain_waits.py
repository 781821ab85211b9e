"""What a person and the training loop wait for: the first step, the loader, checkpoints.

first step    wall time from the command to the first progress line of stage 05, warm file caches, five starts
loader        share of a step spent waiting for the next batch (also on every run's card)
checkpoint    time a save holds up the loop, against the same save done while the loop waits
speed         printed tokens per second against tokens over the wall clock between two printed lines
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline_lib.checkpoints import BackgroundSaver, Retention
from pipeline_lib.config.model import ModelSettings
from pipeline_lib.config.pretrain import PretrainSettings
from pipeline_lib.models.initialise import build_model
from pipeline_lib.models.shapes import resolve_shape
from pipeline_lib.packing.reader import PackedCache
from pipeline_lib.pretraining.batches import PackedData
from pipeline_lib.pretraining.choices import Choices
from pipeline_lib.pretraining.distribution import alone
from pipeline_lib.pretraining.horizon import resolve_horizon
from pipeline_lib.pretraining.loop import optimizer_step
from pipeline_lib.pretraining.run_state import checkpoint_content
from pipeline_lib.pretraining.setup import equip
from pretraining_peers.contest import CONTEXT, ROOT, prepare_run

STARTS = 5
SAVES = 3


def start(config: Path, run: Path, *flags: str) -> tuple[dict, list[tuple[float, str]]]:
    """Run stage 05 in a copy of `run`; return the result on its card and the progress lines with their moments."""
    with tempfile.TemporaryDirectory(dir=run.parent) as place:
        copy = Path(place) / "run"
        copy.mkdir()
        for stage in ("03_packed", "04_init"):
            shutil.copytree(run / stage, copy / stage)
        command = [sys.executable, str(ROOT / "scripts" / "05_pretrain.py"), "--config", str(config)]
        command += ["--run-dir", str(copy), "--validation_tokens", "2000", "--log_seconds", "0", *flags]
        began = time.perf_counter()
        lines = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                if line.startswith("  Step "):
                    lines.append((time.perf_counter() - began, line))
        if process.returncode:
            sys.exit(f"stage 05 failed with exit code {process.returncode}")
        return json.loads((copy / "05_pretrain" / "manifest.json").read_text())["result"], lines


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, default=ROOT / "runs" / "benchmark_pretrain")
    options = parser.parse_args()
    config = prepare_run(options.run_dir)
    firsts, errors, loader = [], [], []
    few = ("--max_steps", "6", "--batch_tokens", "4096", "--tokens", "10000000")
    for _ in range(STARTS):
        result, lines = start(config, options.run_dir, *few)
        firsts.append(lines[0][0])
        loader.append(result["loader_share"])
        for (before, _), (moment, line) in zip(lines[1:], lines[2:], strict=False):
            printed = float(re.search(r"([\d,]+) tok/s", line)[1].replace(",", ""))
            errors.append(abs(printed * (moment - before) / 4096 - 1))
    report("seconds from the command to the first step", f"{statistics.median(firsts):.2f} s", "5 s", spread(firsts))
    report("share of a step spent waiting for the loader", f"{statistics.median(loader):.3%}", "0.5 %", spread(loader))
    error = f"{statistics.median(errors):.2%}"
    report("error of printed tokens/s against the wall clock", error, "1 %", spread(errors))
    stalls: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(STARTS):
        for background, seen in stalls.items():
            seen.append(stall_per_save(options.run_dir, background))
    ours, peer = (statistics.median(stalls[background]) for background in (True, False))
    quality = f"background {spread(stalls[True])}, synchronous {spread(stalls[False])}; the end waits for its save"
    report(
        "stall per checkpoint, 17 M parameters with moments, against a synchronous save",
        f"{ours:.4f} s",
        f"{peer:.4f} s",
        quality,
        peer / ours,
    )


def stall_per_save(folder: Path, background: bool) -> float:
    """Train a few steps, save after every second one, and return the seconds a save held up the loop."""
    settings = PretrainSettings(batch_tokens=4096, micro_batch=8, tokens=100_000, background_saving=background)
    cache = PackedCache(folder / "03_packed")
    model_settings = ModelSettings(shape={"layers": 8, "width": 384, "heads": 6})
    shape = resolve_shape(model_settings, cache.vocab_size, CONTEXT)
    model = build_model(shape, model_settings, {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}, seed=0)
    horizon = resolve_horizon(settings, CONTEXT, shape.width, shape.parameter_counts()["matmul"])
    run = equip(model, Choices(), settings, horizon, alone())
    batches = PackedData(cache, CONTEXT, horizon.sequences, 0, 10_000).training_batches(None)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        saver = BackgroundSaver(Path(place), Retention(2, None, False), background)
        for step in range(1, 2 * SAVES + 2):
            optimizer_step(run, next(batches)[0], settings, saver.before_update)
            if step % 2 == 0:
                saver.start(*checkpoint_content(run))
        stalled = saver.stalled
        saver.finish()
    return stalled / saver.saves


def spread(values: list[float]) -> str:
    """Spell the range of the values."""
    return f"{min(values):.4g} to {max(values):.4g} in {len(values)}"


def report(claim: str, ours: str, peer: str, quality: str, ratio: float | None = None) -> None:
    """Print one row; a peer that is a limit has no ratio."""
    row = {"claim": claim, "ours": ours, "peer": peer, "ratio": round(ratio, 1) if ratio else "limit"}
    print(json.dumps({**row, "quality": quality}), flush=True)


if __name__ == "__main__":
    main()
