"""Run the benchmarks of this folder and write benchmarks/RESULTS.md from what they print.

    python benchmarks/run_all.py                              all of them, and those of claims.py (make bench)
    python benchmarks/run_all.py packing_speed packing_rules  these; the sections of the others stay as they are
    python benchmarks/run_all.py NAME -- --reduced            one with options, in a section named after both

A benchmark is a script that prints one JSON object per line, each {"claim", "ours", "peer", "ratio", "quality", ...}:
the ratio of medians of at least five interleaved runs on one machine, and the quality beside it. Nothing in RESULTS.md
is typed by hand. Sections are measured at different times, so each names its own date, commit and machine, and the file
is rewritten, whole or not at all, after every benchmark: stopping a run of hours loses only the benchmark at work.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from claims import Claim

FOLDER = Path(__file__).resolve().parent
NO_BENCHMARKS = ("run_all", "claims")
COLUMNS = ("claim", "ours", "peer", "ratio", "quality")
# Peers with an environment of their own, and the variable that names its Python.
ELSEWHERE = {"litgpt": "LITGPT_PYTHON"}
HEAD = """# Results

Written by `make bench` (one benchmark: `python benchmarks/run_all.py NAME`). Ratios of medians; absolute figures are
context. Each section names the day, the commit and the machine it was measured on.
"""


def git(folder: Path, *arguments: str) -> str:
    """Return what a git command says about the repository of `folder`; an empty string outside of one."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def commit_of(folder: Path) -> str:
    """Return the short hash of the code at work, and say so when files differ from it."""
    commit = git(folder, "rev-parse", "--short", "HEAD")
    # RESULTS.md changes with every benchmark and changes no figure.
    changed = git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,glob)**/RESULTS.md")
    return (f"commit {commit}" if commit else "no git commit") + (" with uncommitted changes" if changed else "")


def machine() -> str:
    """Return the processor, the number of cores and the Python version of this machine."""
    information = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", information.read_text(), re.M) if information.exists() else None
    processor = f"{platform.machine()} ({model.group(1)})" if model else platform.machine()
    return f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}"


def run_benchmark(script: Path, options: Sequence[str] = ()) -> list[dict] | None:
    """Return the rows a benchmark printed, or None when it failed (its own message is on stderr)."""
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1] / "scripts"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # ours and the peers' imports would be compiled at every start
    done = subprocess.run(
        [sys.executable, str(script), *options], env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        print(f"{script.name} failed with exit code {done.returncode}", file=sys.stderr)
        return None
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def cell(value: object) -> str:
    """Return a value as the text of one table cell: no line end, and no bar that would start another cell."""
    return " ".join(str(value).split()).replace("|", "\\|")


def table(rows: list[dict]) -> str:
    """Return rows as a Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cell(row.get(column, "")) for column in COLUMNS) + " |" for row in rows]
    return "\n".join(lines)


def read_sections(results: Path) -> dict[str, str]:
    """Return the sections of an existing RESULTS.md by the name of their benchmark, without their headings."""
    text = results.read_text() if results.exists() else ""
    _, *sections = re.split(r"^## ", text, flags=re.M)
    return {name.strip(): body.strip() for name, _, body in (section.partition("\n") for section in sections)}


def choose(names: list[str], existing: list[str]) -> list[str]:
    """Return the benchmarks meant by the names, `.py` and folder or not; all when none is named. Raises ValueError."""
    chosen = [Path(name).name.removesuffix(".py") for name in names]
    unknown = [name for name, stem in zip(names, chosen, strict=True) if stem not in existing]
    if unknown:
        raise ValueError(f"there is no benchmark {', '.join(unknown)}; there are: {', '.join(existing)}")
    return list(dict.fromkeys(chosen)) or existing


def every_section(existing: list[str], claims: Sequence["Claim"]) -> list[tuple[str, ...]]:
    """Return all benchmarks, plain and with the options that a claim names, each as its name and its options.

    One is left out with a line when a claimed peer is not installed: measured without it, its section loses that row.
    """
    sections = dict.fromkeys([*existing, *(claim.benchmark for claim in claims)])
    for claim in claims:
        absent = [peer for peer, variable in ELSEWHERE.items() if peer in claim.row and not os.environ.get(variable)]
        if absent and claim.benchmark in sections:
            del sections[claim.benchmark]
            print(
                f"{claim.benchmark}: not measured, {ELSEWHERE[absent[0]]} names no Python that has {absent[0]};"
                " a section measured before stays"
            )
    return [tuple(section.split()) for section in sections]


def main(folder: Path, names: list[str], options: Sequence[str] = (), claims: Sequence["Claim"] = ()) -> int:
    """Run the benchmarks named and rewrite the RESULTS.md of `folder` after each; options go to a single one.

    Without names these are all of the folder, and again those that a claim names with options. Returns 0, 1 when a
    benchmark failed or printed nothing (the others are still run, and the section it had before stays), or 2 when a
    name is none or options come with several.
    """
    from pipeline_lib.stage import write_bytes_atomic

    existing = sorted(script.stem for script in folder.glob("*.py") if script.stem not in NO_BENCHMARKS)
    try:
        chosen = choose(names, existing)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options and len(chosen) > 1:
        print(f"{' '.join(options)}: options need one benchmark, not {len(chosen)}", file=sys.stderr)
        return 2
    results, genuine = folder / "RESULTS.md", folder.parents[1] / "shared" / "data"
    sections = {name: body for name, body in read_sections(results).items() if name.split()[0] in existing}
    failed = []
    jobs = [(name, *options) for name in chosen] if names or options else every_section(existing, claims)
    for position, (script, *given) in enumerate(jobs, 1):
        name = " ".join([script, *given])  # measured otherwise, it is another section
        print(f"running {name} ({position} of {len(jobs)})", flush=True)
        measured = f"{time.strftime('%Y-%m-%d')}, {commit_of(folder)}, {machine()}"
        rows = run_benchmark(folder / f"{script}.py", given)
        if rows:
            sections[name] = f"{measured}.\n\n{table(rows)}"
        elif rows is None or genuine.is_dir():
            if rows is not None:
                print(f"{script}.py printed no row", file=sys.stderr)
            failed.append(name)
            continue
        elif "\n|" in sections.get(name, ""):
            print(f"{name}: not measured, ../shared/data is missing; its section measured before stays")
        else:
            sections[name] = f"{measured}.\n\nnot measured: the genuine records of ../shared/data are missing"
        bodies = [f"\n## {name}\n\n{sections[name]}\n" for name in sorted(sections)]
        write_bytes_atomic(results, (HEAD + "".join(bodies)).encode())
    print(f"{results}; the README's table of them: python benchmarks/claims.py")
    if failed:
        print(f"failed, and not in this run's results: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER.parent / "scripts"))
    from claims import CLAIMS

    parser = argparse.ArgumentParser(
        usage="run_all.py [-h] [NAME ...] [-- OPTION ...]",
        description="Run benchmarks and write their sections of benchmarks/RESULTS.md.",
        epilog="What follows -- are options of the one benchmark named.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a benchmark, with or without .py; all when left out")
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    try:
        sys.exit(main(FOLDER, parser.parse_args(sys.argv[1:split]).names, sys.argv[split + 1 :], CLAIMS))
    except KeyboardInterrupt:
        sys.exit(130)
