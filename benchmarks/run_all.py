"""Run every benchmark of this folder and write benchmarks/RESULTS.md from what they print.

A benchmark is a script that prints one JSON object per line, each {"claim", "ours", "peer", "ratio", "quality", ...}:
the ratio of medians of at least five interleaved runs on this machine, and the quality beside it. Nothing in RESULTS.md
is typed by hand.
"""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
COLUMNS = ("claim", "ours", "peer", "ratio", "quality")


def run_benchmark(script: Path) -> list[dict]:
    """Return the rows a benchmark printed. Raises SystemExit when it failed: a missing row must not go unnoticed."""
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent / "scripts"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{script.name} failed with exit code {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main() -> None:
    """Run the benchmarks named on the command line, or all of them, and rewrite RESULTS.md."""
    from pipeline_lib.stage import write_bytes_atomic

    chosen = [FOLDER / name for name in sys.argv[1:]] or sorted(FOLDER.glob("*.py"))
    lines = [
        "# Results",
        "",
        f"Written by `make bench` on {time.strftime('%Y-%m-%d')}: {platform.machine()}, {os.cpu_count()} cores,"
        f" Python {platform.python_version()}. Ratios of medians; absolute figures are context.",
        "",
    ]
    for script in chosen:
        if script.name == Path(__file__).name:
            continue
        print(f"running {script.name}", flush=True)
        rows = run_benchmark(script)
        lines += [f"## {script.stem}", "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        lines += ["| " + " | ".join(str(row.get(column, "")) for column in COLUMNS) + " |" for row in rows]
        lines.append("")
    write_bytes_atomic(FOLDER / "RESULTS.md", ("\n".join(lines)).encode())
    print(FOLDER / "RESULTS.md")


if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER.parent / "scripts"))
    main()
