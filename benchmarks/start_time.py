"""How long `--help` takes, script by script, against the same question put to a peer's command line."""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
RUNS = 7


def seconds(command: list[str]) -> float:
    """Return the wall time of one run of a command, in seconds."""
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    """Print one row per script; runs of ours and the peer's are interleaved."""
    peer = [str(Path(sys.executable).with_name("lm-eval")), "--help"]
    for script in sorted(SCRIPTS.glob("[01][0-9]_*.py")):
        command = [sys.executable, str(script), "--help"]
        seconds(command)
        ours, theirs = [], []
        for _ in range(RUNS):
            ours.append(seconds(command))
            theirs.append(seconds(peer))
        here, there = statistics.median(ours), statistics.median(theirs)
        row = {"claim": f"{script.name} --help", "ours": f"{here:.3f} s", "peer": f"lm-eval --help {there:.2f} s"}
        print(json.dumps({**row, "ratio": f"{there / here:.1f}x", "quality": "no heavy library loaded"}), flush=True)


if __name__ == "__main__":
    main()
