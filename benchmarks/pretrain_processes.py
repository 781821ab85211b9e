"""The loss curve of 1, 2 and 4 processes: the same numbers up to the order of float32 sums, also after a resume.

Stage 05 as torchrun starts it, on CPU processes over gloo, sharing one batch by ddp and by fsdp; and a run that N
processes began, stopped by SIGTERM in the middle, and M processes ended. The figures are the largest relative
differences from the curve of one process over all steps; the peer is what the tests allow.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pretraining_peers.contest import ROOT, prepare_run

STEPS = 40
SHOWN = (1, 10, 20, 30, 40)
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-5, 1e-4
SHARED = (("ddp", 2), ("ddp", 4), ("fsdp", 2), ("fsdp", 4))
CONTINUED = ((("ddp", 2), ("single", 1)), (("single", 1), ("fsdp", 4)), (("fsdp", 4), ("ddp", 2)))
FLAGS = ("--batch_tokens", "4096", "--max_steps", str(STEPS), "--dtype", "float32", "--validation_tokens", "8192")


def command_of(config: Path, run: Path, strategy: str, processes: int) -> list[str]:
    """Return the command that trains with so many processes."""
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", str(processes)]
    script = [str(ROOT / "scripts" / "05_pretrain.py"), "--config", str(config), "--run-dir", str(run)]
    return [*(torchrun if processes > 1 else [sys.executable]), *script, "--strategy", strategy, *FLAGS]


def lines(path: Path) -> list[dict]:
    """Return the whole lines of a metrics file that may be growing."""
    written = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in written if line.endswith("}")]


def curve(config: Path, run: Path, *parts: tuple[str, int]) -> list[dict]:
    """Return the metrics of a fresh run; after each of the `parts` but the last it is stopped and continued."""
    with tempfile.TemporaryDirectory(dir=run.parent) as place:
        copy = Path(place) / "run"
        for stage in ("03_packed", "04_init"):
            shutil.copytree(run / stage, copy / stage)
        unfinished = copy / "05_pretrain" / "work" / "metrics.jsonl"
        for number, part in enumerate(parts[:-1], 1):
            process = subprocess.Popen(command_of(config, copy, *part), stdout=sys.stderr)
            while process.poll() is None and len(lines(unfinished)) <= number * STEPS // len(parts):
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            process.wait()
            if not 0 < len(lines(unfinished)) <= STEPS:
                sys.exit("the run was over before it could be stopped")
        subprocess.run(command_of(config, copy, *parts[-1]), check=True, stdout=sys.stderr)
        return lines(copy / "05_pretrain" / "metrics.jsonl")


def main() -> None:
    """Print one row per way to share the work, and one per resume."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, default=ROOT / "runs" / "benchmark_pretrain")
    options = parser.parse_args()
    config = prepare_run(options.run_dir)
    alone = curve(config, options.run_dir, ("single", 1))
    ways = [(f"{count} processes, {strategy}", ((strategy, count),)) for strategy, count in SHARED]
    ways += [(f"{a} {first} then {b} {then}", ((first, a), (then, b))) for (first, a), (then, b) in CONTINUED]
    for name, parts in ways:
        found = curve(config, options.run_dir, *parts)
        if [line["step"] for line in found] != [line["step"] for line in alone]:
            sys.exit(f"{name}: the metrics do not hold every step once")
        apart = {
            key: max(abs(line[key] / one[key] - 1) for line, one in zip(found[1:], alone[1:], strict=True))
            for key in ("loss", "grad_norm")
        }
        same = apart["loss"] <= LOSS_TOLERANCE and apart["grad_norm"] <= NORM_TOLERANCE
        row = {
            "claim": f"largest difference from the curve of one process over {STEPS} steps: {name}",
            "ours": f"loss {apart['loss']:.1e}, gradient norm {apart['grad_norm']:.1e}",
            "peer": f"{LOSS_TOLERANCE:.0e}, {NORM_TOLERANCE:.0e}",
            "ratio": "within the limit" if same else "OUTSIDE",
            "quality": {f"loss at step {n}": [round(alone[n]["loss"], 6), round(found[n]["loss"], 6)] for n in SHOWN},
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
