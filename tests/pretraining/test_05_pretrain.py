"""Stage 05 as a command: killed, stopped, damaged or diverged, it loses no work and never ends differently."""

import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
from pathlib import Path

import pytest
from packed_run import write_text

from fork_launcher import run_script
from pipeline_lib.checkpoints import load_checkpoint, newest_valid_checkpoint
from pipeline_lib.evaluation.results import reproducible_numbers
from pipeline_lib.packing.chunk_format import ChunkFile
from pipeline_lib.stage import Ledger
from pipeline_lib.stage.manifest import Manifest

STEPS = 24


def digests(run: Path) -> dict[str, str]:
    """What must not depend on interruptions: digests of the outputs, and the numbers that an evaluation passes on."""
    folder = run / "05_pretrain"
    files = [folder / "metrics.jsonl", *sorted((folder / "final").iterdir())]
    manifest = Manifest.read(folder / "manifest.json")
    told = {"numbers": str(reproducible_numbers(manifest.result)), "ledger": str(manifest.ledger)}
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files} | told


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def notes(run: Path) -> list[str]:
    return Manifest.read(run / "05_pretrain" / "manifest.json").notes


def metrics_of_unfinished(run: Path) -> list[dict]:
    path = run / "05_pretrain" / "work" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


@pytest.fixture(scope="module")
def uninterrupted(packed_run, launcher, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    shutil.copytree(packed_run[1], run)
    done = launcher.start(packed_run[0], run)
    assert done.code == 0, done.output
    return run


def test_training_lowers_the_validation_bits_per_byte_and_says_so(uninterrupted):
    result = Manifest.read(uninterrupted / "05_pretrain" / "manifest.json").result
    assert result["steps"] == STEPS and result["tokens"] == STEPS * 512
    assert result["val_bits_per_byte_after"] < 0.8 * result["val_bits_per_byte_before"]
    assert 0.9 * result["tokens"] < result["predicted_tokens"] < result["tokens"]
    timing = result["timing"]
    assert math.isclose(timing["tokens_per_second"], result["tokens"] / timing["seconds"])


def test_the_ledger_takes_over_what_was_packed_and_says_what_became_of_it(uninterrupted):
    packed, trained = (
        Ledger.from_json(Manifest.read(uninterrupted / name / "manifest.json").ledger)
        for name in ("03_packed", "05_pretrain")
    )
    (_, source, entry), *others = trained.items()
    assert (source, others) == ("made", [])
    assert {**packed.total("text"), "bytes": 0} == trained.total("text", "entered")
    assert set(entry.dropped) == {"set aside for validation", "not reached within the budget"}
    assert 0 < trained.total("text")["tokens"] < trained.total("text", "entered")["tokens"]
    result = Manifest.read(uninterrupted / "05_pretrain" / "manifest.json").result
    assert result["text_tokens_read"] == {"once": trained.total("text")["tokens"], "again": 0}
    assert result["token_uses"]["repeated"] == 0


def test_metrics_hold_one_line_per_step(uninterrupted):
    written = lines(uninterrupted / "05_pretrain" / "metrics.jsonl")
    assert [line["step"] for line in written] == list(range(STEPS + 1))
    assert all(line["loss"] > 0 and line["grad_norm"] > 0 and line["lr"] > 0 for line in written[1:])
    assert [line["step"] for line in written if "val_bits_per_byte" in line] == [0, 8, 16, 24]


def test_the_times_of_the_steps_add_up_to_the_reported_time(uninterrupted):
    folder = uninterrupted / "05_pretrain"
    spent = sum(line["seconds"] for line in lines(folder / "timings.jsonl"))
    manifest = Manifest.read(folder / "manifest.json")
    assert math.isclose(spent, manifest.result["timing"]["seconds"], rel_tol=0.01)
    assert spent < manifest.run["seconds"]


def test_the_final_model_loads_and_has_the_reported_validation_loss(uninterrupted):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipeline_lib.packing.reader import PackedCache

    folder = uninterrupted / "05_pretrain"
    model = AutoModelForCausalLM.from_pretrained(folder / "final").eval()
    assert len(AutoTokenizer.from_pretrained(folder / "final")) == model.config.vocab_size
    cache = PackedCache(uninterrupted / "03_packed")
    nats, count, size = 0.0, 0, 0
    sequences = -(-2000 // 64)
    for batch in cache.batches(64, 1, split="val", seed=42):
        if batch["state"]["position"] > sequences:
            break
        tokens, labels, segments = (batch[k][0] for k in ("input_ids", "labels", "segment_ids"))
        for segment in sorted(set(segments.tolist()) - {0}):
            inside = segments == segment
            with torch.no_grad():
                logits = model(input_ids=tokens[inside][None]).logits[0, :-1].double()
            wanted = labels[inside][1:]
            nats -= float(logits.log_softmax(-1).gather(1, wanted[:, None]).sum())
            count += len(wanted)
            size += int(cache.token_bytes[wanted.numpy()].sum())
    result = Manifest.read(folder / "manifest.json").result
    assert result["val_loss_after"] == pytest.approx(nats / count, rel=1e-4)
    assert result["val_bits_per_byte_after"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_bits(fresh_run, launcher, uninterrupted):
    config, run = fresh_run
    work = run / "05_pretrain" / "work"
    chance = random.Random(3)
    kills = 0

    def in_the_middle_of_a_save() -> bool:
        return any(path.name.startswith(".tmp-") for path in (work / "checkpoints").glob(".tmp-*"))

    def after(count: int):
        return lambda: len(metrics_of_unfinished(run)) > count

    saving = in_the_middle_of_a_save
    for moment in [after(0), after(5), saving, after(9), saving, after(17), after(23)]:
        ended = launcher.start(config, run, when=moment)
        kills += ended.code == -signal.SIGKILL
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL, ended.output
        if chance.random() < 0.5 and (work / "metrics.jsonl").exists():
            with open(work / "metrics.jsonl", "ab") as stream:  # as a power cut would leave it
                stream.write(b'{"step": 99, "lo')
    else:
        ended = launcher.start(config, run)
    assert ended.code == 0, ended.output
    assert kills >= 4
    assert digests(run) == digests(uninterrupted)
    assert [line["step"] for line in lines(run / "05_pretrain" / "timings.jsonl")] == list(range(STEPS + 1))


@pytest.mark.slow
def test_the_first_repeated_step_is_compared_and_the_verdict_is_on_the_card(fresh_run, launcher):
    config, run = fresh_run
    ended = launcher.start(config, run, when=lambda: len(metrics_of_unfinished(run)) >= 12)
    assert ended.code == -signal.SIGKILL
    done = launcher.start(config, run)
    assert done.code == 0, done.output
    assert any("replayed, continues bit for bit: yes" in note for note in notes(run)), notes(run)


@pytest.mark.slow
def test_a_continuation_that_differs_is_called_different(fresh_run, launcher):
    config, run = fresh_run
    ended = launcher.start(config, run, when=lambda: len(metrics_of_unfinished(run)) >= 12)
    assert ended.code == -signal.SIGKILL
    metrics = run / "05_pretrain" / "work" / "metrics.jsonl"
    step = load_checkpoint(newest_valid_checkpoint(metrics.parent / "checkpoints")).step
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    for record in records:
        if record["step"] > step:
            record["loss"] *= 1 + 1e-7
    metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    done = launcher.start(config, run)
    assert done.code == 0, done.output
    assert any("continues bit for bit: no (loss" in note for note in notes(run)), notes(run)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_no_step_is_done_twice(fresh_run, launcher, uninterrupted, number):
    config, run = fresh_run
    ended = launcher.start(config, run, signal_number=number, when=lambda: len(metrics_of_unfinished(run)) >= 11)
    assert ended.code == 128 + number, ended.output
    assert "continue with:" in ended.output
    saved = load_checkpoint(newest_valid_checkpoint(run / "05_pretrain" / "work" / "checkpoints"))
    assert saved.step == len(metrics_of_unfinished(run)) - 1
    done = launcher.start(config, run)
    assert done.code == 0, done.output
    assert not any("replayed" in note for note in notes(run))
    assert digests(run) == digests(uninterrupted)


@pytest.mark.slow
def test_the_time_limit_saves_and_the_next_start_goes_on(fresh_run, launcher, uninterrupted):
    config, run = fresh_run
    ended = launcher.start(config, run, "--time_limit_seconds", "0.001")
    assert ended.code == 128 + signal.SIGTERM, ended.output
    assert "time limit of 0 s is reached after step 1" in ended.output and "continue with:" in ended.output
    assert load_checkpoint(newest_valid_checkpoint(run / "05_pretrain" / "work" / "checkpoints")).step == 1
    done = launcher.start(config, run)  # the limit was that start's
    assert done.code == 0, done.output
    assert digests(run) == digests(uninterrupted)


@pytest.mark.slow
def test_a_full_disk_while_saving_is_one_line_and_the_run_ends_with_the_same_bits(fresh_run, launcher, uninterrupted):
    config, run = fresh_run
    checkpoints = run / "05_pretrain" / "work" / "checkpoints"
    launcher.start(config, run, signal_number=signal.SIGTERM, when=lambda: len(metrics_of_unfinished(run)) >= 8)
    before = newest_valid_checkpoint(checkpoints)
    assert (before / "model.safetensors").stat().st_size > 50_000
    full = launcher.start(config, run, file_bytes=50_000)
    assert full.code == 1 and "Traceback" not in full.output, full.output
    assert "checkpoints" in full.output and "ulimit" in full.output
    assert newest_valid_checkpoint(checkpoints) == before and not list(checkpoints.glob(".tmp-*"))
    done = launcher.start(config, run)
    assert done.code == 0, done.output
    assert digests(run) == digests(uninterrupted)


@pytest.mark.slow
def test_a_signal_during_validation_saves_the_step_and_validates_after_the_restart(fresh_run, launcher, uninterrupted):
    config, run = fresh_run
    work = run / "05_pretrain" / "work"
    # Step 16 is validated: its line is only written afterwards. One token per micro-batch of one makes that take long.
    ended = launcher.start(
        config,
        run,
        "--micro_batch",
        "1",
        signal_number=signal.SIGTERM,
        when=lambda: len(metrics_of_unfinished(run)) == 16,
    )
    assert ended.code == 128 + signal.SIGTERM, ended.output
    assert newest_valid_checkpoint(work / "checkpoints") is not None
    done = launcher.start(config, run, "--micro_batch", "1")
    assert done.code == 0, done.output
    written = lines(run / "05_pretrain" / "metrics.jsonl")
    assert [line["step"] for line in written] == list(range(STEPS + 1))
    assert [line["step"] for line in written if "val_bits_per_byte" in line] == [0, 8, 16, 24]


@pytest.mark.slow
def test_text_that_is_packed_while_training_pauses_comes_after_what_was_promised(fresh_run, launcher, uninterrupted):
    config, run = fresh_run
    ended = launcher.start(
        config, run, signal_number=signal.SIGTERM, when=lambda: len(metrics_of_unfinished(run)) >= 10
    )
    assert ended.code == 128 + signal.SIGTERM, ended.output
    before = lines(run / "05_pretrain" / "work" / "metrics.jsonl")
    write_text(run, 60, seed=1, shard=1)
    packed = run_script("03_tokenize_and_pack.py", config, run)
    assert packed.returncode == 0, packed.stdout + packed.stderr
    done = launcher.start(config, run)
    assert done.code == 0, done.output
    after, reference = (lines(folder / "05_pretrain" / "metrics.jsonl") for folder in (run, uninterrupted))
    assert after[: len(before)] == before and len(before) < STEPS
    told = [[(line["step"], line["loss"], line["grad_norm"]) for line in each[1:]] for each in (after, reference)]
    assert told[0] == told[1]  # 24 steps do not reach the end of the text that was there at first
    trained, grown = (
        Ledger.from_json(Manifest.read(run / name / "manifest.json").ledger) for name in ("05_pretrain", "03_packed")
    )
    assert trained.total("text", "entered")["tokens"] == grown.total("text")["tokens"]
    assert trained.total("text", "entered")["documents"] == 360
    assert any("what was added comes after it" in note for note in notes(run)), notes(run)


def test_a_damaged_checkpoint_is_passed_over_and_the_result_stays_the_same(fresh_run, launcher, uninterrupted):
    config, run = fresh_run
    launcher.start(config, run, when=lambda: len(metrics_of_unfinished(run)) >= 14)
    newest = newest_valid_checkpoint(run / "05_pretrain" / "work" / "checkpoints")
    if newest.name.startswith(".tmp-"):  # the kill came between its last file and its new name
        newest = newest.rename(newest.parent / "renamed")
    data = bytearray((newest / "optimizer_adamw.safetensors").read_bytes())
    data[-1] ^= 1
    (newest / "optimizer_adamw.safetensors").write_bytes(data)
    done = launcher.start(config, run)
    assert done.code == 0, done.output
    assert "skipping a damaged checkpoint" in done.output and newest.name in done.output
    assert digests(run) == digests(uninterrupted)


def test_a_diverged_run_stops_before_the_weights_are_lost(fresh_run, launcher):
    config, run = fresh_run
    done = launcher.start(config, run, "--optimizer.lr", "1e30", "--checkpoint_steps", "1000")
    assert done.code == 1
    assert "diverged at step" in done.output
    assert "no older checkpoint to go back to: begin anew with --force and a lower pretrain.optimizer.lr" in done.output
    saved = load_checkpoint(newest_valid_checkpoint(run / "05_pretrain" / "work" / "checkpoints"))
    assert f"the weights of step {saved.step} are saved" in done.output
    assert len(metrics_of_unfinished(run)) == saved.step + 1


@pytest.mark.long
def test_memory_that_really_runs_out_is_recovered_from_and_reported(fresh_run, launcher):
    config, run = fresh_run
    flags = ["--batch_tokens", "1000000", "--tokens", "1000000", "--micro_batch", "15625", "--validation_tokens", "64"]
    done = launcher.start(config, run, *flags, spare_bytes=3_000_000_000)
    assert done.code == 0, done.output
    assert "step 1: memory ran out, the same batch was done again in pieces of" in done.output
    memory = Manifest.read(run / "05_pretrain" / "manifest.json").result["out_of_memory"]
    assert memory["events"] >= 1 and memory["64"] < 15625


def overwrite(path: Path, content: bytes) -> None:
    """Change a file in place as a failing disk does: with the modification time of before."""
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.slow
def test_text_that_is_damaged_when_a_validation_reads_it_loses_no_step(fresh_run, launcher, uninterrupted):
    config, run = fresh_run
    index = json.loads((run / "03_packed" / "index.json").read_text())
    chunk = run / "03_packed" / next(each["file"] for each in index["chunks"] if each["split"] == "val")
    whole = chunk.read_bytes()
    file = ChunkFile(chunk)
    place = file._start + file.header["sections"]["tokens"]["position"] + 100
    spoilt = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]

    def damage() -> bool:
        if len(metrics_of_unfinished(run)) > 3 and chunk.read_bytes() == whole:
            overwrite(chunk, spoilt)
        return False

    ended = launcher.start(config, run, when=damage)
    assert ended.code in (1, 2) and f"{chunk.name} is damaged" in ended.output, ended.output
    overwrite(chunk, whole)
    done = launcher.start(config, run)
    assert done.code == 0 and re.search(r"continuing from step-000000(08|16|24)", done.output), done.output
    assert digests(run) == digests(uninterrupted)


@pytest.mark.slow
def test_another_vocabulary_and_another_tokenizer_are_named_with_both_values(packed_run, launcher, tmp_path):
    config, run = packed_run
    for name, shard, flags, words in (
        ("smaller", 0, ["--vocab_size", "380"], "the model has 400 token ids, the cache 380"),
        ("other", 1, [], "the model was made for another tokenizer"),
    ):
        copy = tmp_path / name
        shutil.copytree(run, copy)
        if shard:
            write_text(copy, 100, seed=9, shard=shard)  # other words, so other merges
            shutil.rmtree(copy / "03_packed")
        packed = run_script("03_tokenize_and_pack.py", config, copy, *flags)
        assert packed.returncode == 0, packed.stdout + packed.stderr
        done = launcher.start(config, copy)
        assert done.code == 2 and words in done.output and "04_init_model.py" in done.output, done.output
    assert len(set(re.findall(r"xxh3:[0-9a-f]+", done.output))) == 2


def test_fused_kernels_that_cannot_run_are_one_line(packed_run, launcher, tmp_path):
    shutil.copytree(packed_run[1], tmp_path / "run")
    for flags in (["--use_liger_kernel", "true"], ["--use_cce", "true"], ["--use_cce", "true", "--plan"]):
        done = launcher.start(packed_run[0], tmp_path / "run", *flags)
        assert done.code == 1, done.output
        assert f"pretrain.{flags[0][2:]} is on, but" in done.output, done.output
        assert "Traceback" not in done.output


def test_an_expectation_that_the_packed_text_does_not_meet_is_said(fresh_run, launcher):
    config, run = fresh_run
    flags = ["--epochs", "1", "--full_data_tokens", "10000000"]
    config_without_tokens = run.parent / "epochs.yaml"
    config_without_tokens.write_text(config.read_text().replace("  tokens: 12288\n", ""))
    told = launcher.start(config_without_tokens, run, *flags, when=lambda: len(metrics_of_unfinished(run)) >= 1).output
    assert "the training text is expected to have 10,000,000 tokens" in told, told
    assert "the horizon of 19,531 steps is that of the expected text" in told
    assert "the warm-up of 488 steps reads more than all the text that is packed" in told
    assert "the horizon reads the training text" in told


def test_a_missing_plan_and_too_long_a_context_are_one_line_each(packed_run, launcher, tmp_path):
    config, run = packed_run
    for flags, words in ((["--context", "128"], "longer than the model's context"), (["--context", "32"], "no plan")):
        copy = tmp_path / flags[1]
        shutil.copytree(run, copy)
        done = launcher.start(config, copy, *flags)
        assert done.code == 2 and words in done.output, done.output
        assert "Traceback" not in done.output
