"""What a person and the training loop wait for: the first step and the loader; and whether the printed speed is true.

first step    wall time from the command to the first progress line of stage 05, warm file caches, five starts
loader        share of a step spent waiting for the next batch (also on every run's card), the first batch included, for
              which a chunk must be read and decoded: over 6 steps, where it weighs most, and over 200
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

from pretraining_peers.contest import ROOT, prepare_run

STARTS = 5
LONGER_RUNS, LONGER_STEPS = 3, 200


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
    small = ("--batch_tokens", "4096", "--tokens", "10000000")
    for _ in range(STARTS):
        result, lines = start(config, options.run_dir, "--max_steps", "6", *small)
        firsts.append(lines[0][0])
        loader.append(result["timing"]["loader_share"])
        for (before, _), (moment, line) in zip(lines[1:], lines[2:], strict=False):
            printed = float(re.search(r"([\d,]+) tok/s", line)[1].replace(",", ""))
            errors.append(abs(printed * (moment - before) / 4096 - 1))
    longer = [
        start(config, options.run_dir, "--max_steps", str(LONGER_STEPS), *small)[0]["timing"]["loader_share"]
        for _ in range(LONGER_RUNS)
    ]
    report("seconds from the command to the first step", f"{statistics.median(firsts):.2f} s", "5 s", spread(firsts))
    waits = {"6": loader, str(LONGER_STEPS): longer}
    for steps, shares in waits.items():
        claim = f"share of a step spent waiting for the loader, {steps} steps"
        report(claim, f"{statistics.median(shares):.3%}", "0.5 %", spread(shares))
    error = f"{statistics.median(errors):.2%}"
    report("error of printed tokens/s against the wall clock", error, "1 %", spread(errors))


def spread(values: list[float]) -> str:
    """Spell the range of the values."""
    return f"{min(values):.4g} to {max(values):.4g} in {len(values)}"


def report(claim: str, ours: str, limit: str, quality: str) -> None:
    """Print one row; the limit takes the peer's place, so there is no ratio."""
    print(json.dumps({"claim": claim, "ours": ours, "peer": limit, "ratio": "limit", "quality": quality}), flush=True)


if __name__ == "__main__":
    main()
