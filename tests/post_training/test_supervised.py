"""Stage 07: the loss is on the assistant's tokens, packing keeps conversations apart, the model learns and can stop."""

import json
import math
from types import SimpleNamespace

import pyarrow
import pytest

from pipeline_lib.stage.errors import StageFailure
from pipeline_lib.stage.ledger import Ledger
from pipeline_lib.stage.manifest import MANIFEST, Manifest
from pipeline_lib.stage.progress import progress


@pytest.fixture(scope="module")
def examples(tiny_run, tokenizer):
    from pipeline_lib.post_training.examples import conversation_rows, read_examples

    return read_examples(
        [tiny_run / "06_sft_data" / "train.parquet"], conversation_rows, tokenizer, 96, Ledger(), "sft"
    )


@pytest.fixture
def make_trainer(tiny_run, tokenizer, tmp_path):
    """Build the trainer of stage 07 on given examples, outside a run."""

    def build(examples, folder=tiny_run / "05_pretrain" / "final", **changes):
        from pipeline_lib.config.sft import SftSettings
        from pipeline_lib.post_training import supervised
        from pipeline_lib.post_training.training_setup import load_model

        settings = SftSettings(**{"max_length": 96, "micro_batch": 4, "max_steps": 4, "learning_rate": 1e-2, **changes})
        stage = SimpleNamespace(
            settings=settings, seed=1, work=tmp_path, note=print, spec=SimpleNamespace(section="sft"),
            interrupted=False, progress=progress, stop_if_interrupted=lambda: None,
        )  # fmt: skip
        model = load_model(folder)
        return supervised.make_trainer(stage, model, tokenizer, examples)

    return build


def assistant_loss(model, examples):
    """Sum of -log p over the assistant's tokens, each conversation alone, by the definition."""
    import torch

    total = tokens = 0
    for row in examples.table.to_pylist():
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        with torch.no_grad():
            logps = model.eval()(input_ids=ids).logits[0].log_softmax(-1)
        for position in range(1, len(labels)):
            if labels[position] != -100:
                total -= logps[position - 1, labels[position]].item()
                tokens += 1
    return total, tokens


def figures_by_definition(folder, examples):
    """Mean loss of all assistant tokens and the share predicted first, by transformers, each conversation alone."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    loss = first = tokens = 0
    for row in examples.table.to_pylist():
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            outputs = model(input_ids=ids, labels=labels)
        scored = labels[0, 1:] != -100
        loss += outputs.loss.item() * int(scored.sum())
        first += int((outputs.logits[0, :-1].argmax(-1) == labels[0, 1:])[scored].sum())
        tokens += int(scored.sum())
    return loss / tokens, first / tokens


@pytest.mark.parametrize("batching", ["length", "shuffle", "pack"])
def test_the_first_loss_is_that_of_the_assistants_tokens(make_trainer, examples, batching):
    import torch

    part = examples.take(range(4))
    trainer = make_trainer(part, batching=batching)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(1))
    total, tokens = assistant_loss(make_trainer(part).model, part)
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert int((batch["labels"] != -100).sum()) == tokens


@pytest.mark.parametrize("batching", ["length", "pack"])
def test_the_held_out_figures_are_those_of_all_tokens_whatever_the_micro_batch(
    make_trainer, examples, aligned_run, tokenizer, batching
):
    from pipeline_lib.post_training.examples import conversation_rows, read_examples

    path = aligned_run / "06_reasoning_data" / "train.parquet"
    long_answers = read_examples([path], conversation_rows, tokenizer, 96, Ledger(), "reasoning")
    both, folder = examples.take(range(6)) + long_answers.take(range(3)), aligned_run / "07_sft" / "final"
    loss, accuracy = figures_by_definition(folder, both)
    assert accuracy > 0
    for micro_batch in (1, 4, 9):
        figures = make_trainer(both, folder, batching=batching, micro_batch=micro_batch).evaluate_tokens(both)
        assert figures == {"val_loss": pytest.approx(loss, abs=1e-5), "val_token_accuracy": pytest.approx(accuracy)}


@pytest.mark.parametrize("batching", ["length", "pack"])
def test_held_out_examples_that_do_not_fit_into_memory_together_are_measured_in_pieces(
    make_trainer, examples, monkeypatch, capsys, batching
):
    part = examples.take(range(15))
    trainer = make_trainer(part, batching=batching, micro_batch=4)
    whole = trainer.evaluate_tokens(part)
    forward, tried, largest = trainer.model.forward, [], 2 * max(part.lengths)

    def limited(**inputs):
        tried.append(inputs["input_ids"].numel())
        if tried[-1] > largest:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        return forward(**inputs)

    monkeypatch.setattr(trainer.model, "forward", limited)
    pieces = trainer.evaluate_tokens(part)
    assert pieces == {
        "val_loss": pytest.approx(whole["val_loss"], rel=1e-6),
        "val_token_accuracy": whole["val_token_accuracy"],
    }
    failed = sum(tokens > largest for tokens in tried)
    assert failed == 1 and len(tried) > 6, "the batches after the one that failed begin with the size that fits"
    assert "held-out examples: memory ran out" in capsys.readouterr().out
    largest = 0
    with pytest.raises(StageFailure, match=r"held-out examples: not even one example fits; lower sft\.max_length"):
        trainer.evaluate_tokens(part)


def test_packed_conversations_do_not_see_each_other(make_trainer, examples):
    import torch

    trainer = make_trainer(examples.take(range(6)), batching="pack")
    packed = trainer.train_dataset
    assert len(packed) < 6 and all(len(row["input_ids"]) <= 96 for row in packed)
    first = next(row for row in packed if len(row["seq_lengths"]) > 1)
    boundary = first["seq_lengths"][0]
    changed = {**first, "input_ids": [5] * boundary + first["input_ids"][boundary:]}
    logits = []
    for row in (first, changed):
        inputs = {key: value for key, value in trainer.data_collator([row]).items() if key != "labels"}
        with torch.no_grad():
            logits.append(trainer.model.eval()(**inputs, use_cache=False).logits[0])
    assert torch.equal(logits[0][boundary:], logits[1][boundary:])
    assert not torch.allclose(logits[0][:boundary], logits[1][:boundary])


@pytest.mark.parametrize("batching", ["length", "shuffle", "pack"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_examples_said_to_be_read_are_those_the_trainer_reads(make_trainer, examples, batching, accumulation):
    """The oracle takes from the trainer's own loader as many batches as its steps take."""
    from pipeline_lib.post_training.examples import account_for_training
    from pipeline_lib.post_training.supervised import examples_read

    steps = 2
    trainer = make_trainer(examples, batching=batching, accumulation=accumulation, max_steps=steps)
    wanted = sorted(row["input_ids"] for row in examples.take(examples_read(examples, trainer.stage)).table.to_pylist())
    rows = [trainer.train_dataset[i] for i in list(trainer.order)[: 4 * steps * accumulation]]
    seen = []
    for row in rows:
        parts = row.get("seq_lengths", [len(row["input_ids"])])
        ends = [sum(parts[: number + 1]) for number in range(len(parts))]
        seen += [row["input_ids"][end - part : end] for part, end in zip(parts, ends, strict=True)]
    assert sorted(seen) == wanted and 0 < len(seen) < len(examples)
    ledger = Ledger()
    for (flow, source), length in zip(examples.origins, examples.lengths, strict=True):
        ledger.enter(flow, source, tokens=length)
    account_for_training(ledger, examples, examples_read(examples, trainer.stage))
    ledger.check()
    assert ledger.total("sft")["tokens"] == sum(len(ids) for ids in seen)


def test_a_conversation_that_does_not_fit_is_dropped_not_cut(tiny_run, tokenizer):
    from pipeline_lib.post_training.examples import conversation_rows, read_examples

    ledger = Ledger()
    path = tiny_run / "06_sft_data" / "train.parquet"
    examples = read_examples([path], conversation_rows, tokenizer, 27, ledger, "sft")
    whole = read_examples([path], conversation_rows, tokenizer, 96, Ledger(), "sft")
    assert 0 < len(examples) < len(whole) and max(examples.lengths) <= 27
    entry = next(entry for _, _, entry in ledger.items())
    assert entry.dropped["too_long"][0] == len(whole) - len(examples)
    assert sum(examples.lengths) + entry.dropped["too_long"][2] == sum(whole.lengths)


def test_a_length_beyond_the_models_context_is_a_user_error(run_copy, helpers, capsys):
    assert helpers.run_script("07_sft.py", run_copy, "--max_length", "128") == 2
    assert "sft.max_length is 128 tokens, but the model is declared for 96" in capsys.readouterr().err


def test_the_stage_learns_and_writes_a_model_that_knows_where_to_stop(aligned_run):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    manifest = Manifest.read(aligned_run / "07_sft" / MANIFEST)
    before, after = manifest.result["before"], manifest.result["after"]
    assert after["val_loss"] < 0.9 * before["val_loss"]
    folder = aligned_run / "07_sft" / "final"
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (aligned_run / "05_pretrain" / "final" / name).read_bytes()
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.use_cache and model.dtype == torch.float32
    assert tokenizer.convert_ids_to_tokens(model.generation_config.eos_token_id) == ["<|im_end|>", "<|endoftext|>"]


def test_each_step_has_one_row_of_metrics_and_the_ledger_chains(aligned_run):
    manifest = Manifest.read(aligned_run / "07_sft" / MANIFEST)
    rows = [json.loads(line) for line in (aligned_run / "07_sft" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, manifest.result["steps"] + 1))
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert not any("runtime" in key or "second" in key for row in rows for key in row)
    kept = Ledger.from_json(manifest.ledger)
    prepared = Manifest.read(aligned_run / "06_sft_data" / MANIFEST)
    assert kept.total("sft", "entered") == Ledger.from_json(prepared.ledger).total("sft", "kept")
    entry = next(entry for flow, _, entry in kept.items() if flow == "sft")
    assert entry.dropped["set aside for validation"][0] == prepared.result["val"]


def test_a_loss_that_is_not_finite_fails_the_stage(run_copy, helpers, capsys):
    assert helpers.run_script("07_sft.py", run_copy, "--learning_rate", "1e30", "--clip_norm", "null") == 1
    assert "lower sft.learning_rate (training then begins anew)" in capsys.readouterr().err
    assert not (run_copy / "07_sft" / "final").exists()


def test_weights_are_stored_in_the_format_they_came_in(run_copy, helpers):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    folder = run_copy / "05_pretrain" / "final"
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    helpers.finish(run_copy, "05_pretrain")
    assert helpers.run_script("07_sft.py", run_copy, "--max_steps", "1") == 0
    weights = load_file(run_copy / "07_sft" / "final" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


def test_examples_can_be_joined_and_spread(examples):
    both = examples + examples
    assert len(both) == 2 * len(examples) == len(both.dataset()) and isinstance(both.table, pyarrow.Table)
    assert both.spread(2).lengths == [examples.lengths[0], examples.lengths[0]]
    assert len(examples.spread(10**6)) == len(examples)


def test_plan_estimates_without_writing(run_copy, helpers, capsys):
    assert helpers.run_script("07_sft.py", run_copy, "--plan") == 0
    out = capsys.readouterr().out
    assert "cost    about" in out and "micro-batches of 16 x" in out
    assert not (run_copy / "07_sft").exists()
