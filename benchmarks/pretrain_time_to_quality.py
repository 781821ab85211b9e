"""Validation bits per byte against time, on this machine's cores: stage 05 against Hugging Face's Trainer and litgpt.

All start from the same initial weights (litgpt from its own initialisation of the same shape), read the same packed
tokens and are judged on the same validation text. A peer gets its best batch, learning rate, number format and, in long
runs, compiling from a sweep whose runs last a fifth of the time (25 seconds at least); we use the rates of
docs/models.md and the smallest batch of the sweep, which was the best of 1,024, 2,048 and 4,096 tokens in short runs.
Then every peer trains for the whole time and we for a share of it, three seeds each. The runs of a seed take turns of
20 seconds, because a machine may halve its speed after minutes of work, for the one who comes last; how many steps they
get comes from short runs that took turns too. Claimed is the peer's time over the time we needed, where we arrived at
the peer's final value or below it.

    python benchmarks/pretrain_time_to_quality.py                10 minutes a run: about two hours with both peers
    python benchmarks/pretrain_time_to_quality.py --reduced      75 seconds a run: about twenty minutes with both

The reduced contest is complete, with three seeds; its sweep has two batch sizes and runs of 25 seconds, so a peer's
settings are less finely tuned. Any of --seconds, --seeds, --batches and --our-share (of a peer's time) changes either
contest, and --peers leaves one out. What is measured lies in contest.jsonl of the run folder: a contest that was
stopped goes on there, seed by seed, with the same code on the same machine.

litgpt pins an older huggingface_hub and cannot share our environment: --litgpt names the Python of one that has it.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path

from pipeline_lib.stage import file_digest
from pipeline_lib.stage.code_version import code_digest, code_version
from pipeline_lib.stage.manifest import MANIFEST, Manifest
from pretraining_peers.contest import CONTEXT, FOLDER, ROOT, Result, batch_tokens, prepare_run, run_ours, run_peer
from pretraining_peers.journal import Journal
from pretraining_peers.turns import Turns
from run_all import machine

RATES = (1e-3, 2e-3, 4e-3)
# A run of the sweep takes a fifth of the time, and no less than calibration and a few validations need.
SWEEP_SHARE, LEAST_SWEEP = 0.2, 25.0
FULL = {"seconds": 600.0, "seeds": 3, "batches": [4, 8, 16]}
REDUCED = {"seconds": 75.0, "seeds": 3, "batches": [4, 8]}
OUR_SHARE = 0.5
# Of the short runs that show how fast each is; a compiling peer is through with it after two steps.
PROBE_STEPS = 40
# Of a run: the moment at which we arrive is known to a twelfth of our time. Validation is not counted as time.
VALIDATIONS = 12
PEERS = ("hf", "litgpt")
# A run of the sweep shorter than this would be over before the compiler is.
LEAST_COMPILED = 90.0
OUR_FLAGS = ("--batch_tokens", "2048", "--micro_batch", "4", "--keep_best", "false")


def best_settings(program: str, python: str, seconds: float, batches: list[int], peer: Callable[..., Result]) -> dict:
    """Return a peer's best settings in a sweep, printing every run to stderr.

    First batch and learning rate; with the best of these bfloat16, and compiling if a run is long enough for it.
    """
    tried: list[tuple[float, dict]] = []

    def attempt(**settings: object) -> None:
        result = peer(program, python, **settings, seconds=seconds, seed=0)
        tried.append((result.bits_per_byte, settings))
        print(f"  sweep {program} {settings}: {result.bits_per_byte}", file=sys.stderr, flush=True)

    def best() -> dict:
        return min(tried, key=lambda pair: pair[0])[1]

    for batch, lr in product(batches, RATES):
        attempt(batch=batch, lr=lr, compile=False, bf16=False)
    attempt(**{**best(), "bf16": True})
    if seconds >= LEAST_COMPILED:
        attempt(**{**best(), "compile": True})
    return best()


def what_all_share(run: Path) -> dict[str, str]:
    """Return what decides every result of a contest besides the contender: the machine, the tokens, the weights."""
    inputs = {name: Manifest.read(run / name / MANIFEST).outputs_digest for name in ("03_packed", "04_init")}
    return {"machine": machine(), "torch": version("torch"), "transformers": version("transformers"), **inputs}


def time_to(result: Result, target: float) -> float | None:
    """Return the first moment on the curve at which `target` was reached, or None."""
    return next((seconds for seconds, value in result.curve if value <= target), None)


def main() -> None:
    """Run the contest and print one row per peer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--reduced", action="store_true", help="a complete contest in twenty minutes")
    parser.add_argument("--seconds", type=float, help="training time of a peer; ours is half of it")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--batches", type=int, nargs="+", help="batch sizes of the sweep, in sequences")
    parser.add_argument("--our-share", type=float, default=OUR_SHARE, help="our training time over a peer's")
    parser.add_argument("--peers", choices=PEERS, nargs="+", default=PEERS, help="whom to compare with")
    parser.add_argument("--run-dir", type=Path, default=ROOT / "runs" / "benchmark_pretrain")
    parser.add_argument("--litgpt", default=os.environ.get("LITGPT_PYTHON"))
    options = parser.parse_args()
    for name, value in (REDUCED if options.reduced else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    config = prepare_run(options.run_dir)
    threads = len(os.sched_getaffinity(0))
    programs = {"Hugging Face Trainer": ("hf_trainer.py", sys.executable)} if "hf" in options.peers else {}
    if options.litgpt and "litgpt" in options.peers:
        programs["litgpt"] = ("litgpt_pretrain.py", options.litgpt)
    if not programs:
        parser.error("nobody to compare with: litgpt needs --litgpt or LITGPT_PYTHON")
    with tempfile.TemporaryDirectory() as scratch:
        common = {
            "packed": options.run_dir / "03_packed",
            "model": options.run_dir / "04_init",
            "context": CONTEXT,
            "threads": threads,
            "scratch": scratch,
        }
        journal = Journal(options.run_dir / "contest.jsonl", **what_all_share(options.run_dir))

        def alone(program: str, python: str, **how: object) -> Result:
            key = {"program": program, "digest": file_digest(FOLDER / program), **how}
            how |= {"steps": None, "validations": 1}
            return journal.once(key, lambda: [run_peer(Turns(), program, python, **common, **how)])[0]

        sweep = max(LEAST_SWEEP, options.seconds * SWEEP_SHARE)
        settings = {name: best_settings(*program, sweep, options.batches, alone) for name, program in programs.items()}
        ours_now = code_digest(code_version(ROOT / "scripts" / "05_pretrain.py"))

        def in_turns(seed: int, validations: int, our_steps: int, steps: dict[str, int]) -> list[Result]:
            """Return our result and each peer's."""
            rivals = {name: {**settings[name], "steps": steps[name]} for name in programs}
            digests = [ours_now, *(file_digest(FOLDER / program) for program, _ in programs.values())]
            key = {"seed": seed, "validations": validations, "digests": digests, "rivals": rivals}
            key |= {"flags": OUR_FLAGS, "our steps": our_steps}

            def measure() -> list[Result]:
                tokens, how, turns = our_steps * batch_tokens(OUR_FLAGS), {"validations": validations}, Turns()
                run_05 = partial(run_ours, turns, config, options.run_dir, tokens, seed, *OUR_FLAGS, **how)
                runs = [run_05] + [
                    partial(run_peer, turns, *programs[name], **common, **rivals[name], seed=seed, **how)
                    for name in programs
                ]
                with ThreadPoolExecutor(len(runs)) as pool:
                    return [future.result() for future in [pool.submit(run) for run in runs]]

            return journal.once(key, measure)

        our_probe, *probes = in_turns(0, 1, PROBE_STEPS, dict.fromkeys(programs, PROBE_STEPS))
        our_steps = round(options.seconds * options.our_share / our_probe.step)
        steps = {
            name: round((options.seconds - probe.beginning) / probe.step)
            for name, probe in zip(programs, probes, strict=True)
        }
        rounds = [in_turns(seed, VALIDATIONS, our_steps, steps) for seed in range(1, options.seeds + 1)]
    ours, *theirs = (list(results) for results in zip(*rounds, strict=True))
    for name, results in zip(programs, theirs, strict=True):
        report(name, settings[name], ours, results, round(1 / options.our_share, 2))


def report(name: str, settings: dict, ours: list[Result], theirs: list[Result], least: float) -> None:
    """Print the row of one peer; least: the ratio below which we have not trained to see."""
    target = statistics.median(result.bits_per_byte for result in theirs)
    times = [time_to(result, target) for result in ours]
    peer_seconds = statistics.median(result.seconds for result in theirs)
    reached = None if None in times else statistics.median(times)
    print(
        json.dumps(
            {
                "claim": f"seconds to the {target:.4f} bits per byte that {name} reaches in {peer_seconds:.0f} s",
                "ours": f"{reached:.0f} s" if reached is not None else f"not within {ours[0].seconds:.0f} s",
                "peer": f"{peer_seconds:.0f} s",
                "ratio": round(peer_seconds / reached, 2) if reached is not None else f"below {least:g}",
                "quality": {
                    "ours": [result.bits_per_byte for result in ours],
                    "peer": [result.bits_per_byte for result in theirs],
                    "peer's best settings": settings,
                    "tokens": [ours[0].tokens, theirs[0].tokens],
                    "our curve": ours[0].curve,
                    "peer's curve": theirs[0].curve,
                },
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
