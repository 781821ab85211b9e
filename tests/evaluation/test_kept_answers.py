"""A task that is stopped between two batches goes on after them to the same scores, and no batch is asked twice."""

import errno
import os
import signal
import stat
from types import SimpleNamespace

import pytest
import torch

from pipeline_lib.config import PROJECT_ROOT
from pipeline_lib.config.task_files import read_task_file
from pipeline_lib.evaluation import kept_answers
from pipeline_lib.evaluation.harness import run_task
from pipeline_lib.evaluation.kept_answers import KeptAnswers
from pipeline_lib.evaluation.language_model import EvaluatedModel
from pipeline_lib.stage import StageFailure, StageInterrupted
from pipeline_lib.stage.journal import Journal
from pipeline_lib.stage.progress import progress

FOLDER = PROJECT_ROOT / "configs" / "eval_tasks"
RECORDS = {
    "python_choice": [
        {
            "id": f"q{n}",
            "question": f"What does `f{n}` do, and {'why ' * n}?",
            "choices": [f"Return {n}.", "Raise an error é.", "Add", "Sort it"],
            "answer": n % 4,
        }
        for n in range(12)
    ],
    "heldout_docs": [{"id": f"d{n}", "text": "The sum of all elements. naïve 東京 " * (n + 1)} for n in range(8)],
    "domain": [{"id": f"a{n}", "instruction": f"def f(x, y={n})", "output": f"Return {n}."} for n in range(16)],
    "gsm8k": [
        {"id": f"s{n}", "question": f"Tom has {n} apples. " * (1 + n % 3), "answer": f"#### 1,00{n}"} for n in range(16)
    ],
}


@pytest.fixture
def asked(tiny_llama, tokenizer, monkeypatch):
    """A model of small batches, and the list of the batches that it was asked, each with its tokens."""
    model = EvaluatedModel(tiny_llama, tokenizer, batch_tokens=100)
    batches = []
    score, generate = model.scorer._score_batch, tiny_llama.generate
    monkeypatch.setattr(
        model.scorer, "_score_batch", lambda rows: batches.append([tuple(row.tokens) for row in rows]) or score(rows)
    )
    monkeypatch.setattr(
        tiny_llama, "generate", lambda ids, **more: batches.append(ids.tolist()) or generate(ids, **more)
    )
    return model, batches


def stage_in(folder, after_each_batch=lambda: None):
    return SimpleNamespace(work=folder, say=print, note=print, progress=progress, stop_if_interrupted=after_each_batch)


def ask(model, name, stage=None):
    task = read_task_file(FOLDER, name)
    if name == "gsm8k":
        shorter = task.generation_kwargs.model_copy(update={"max_gen_toks": 12})
        task = task.model_copy(update={"generation_kwargs": shorter})
    if stage is None:
        model.begin_task(kept_answers.ask_all)
        return run_task(model, task, RECORDS[name], False, 300)
    with KeptAnswers(stage, f"sft.{name}") as kept:
        model.begin_task(kept)
        return run_task(model, task, RECORDS[name], False, 300)


@pytest.mark.parametrize(("seconds", "lines"), [(0.0, [1, 2, 3]), (1e9, [0, 0, 0])])
@pytest.mark.parametrize("name", RECORDS)
def test_a_task_stopped_half_way_goes_on_after_its_last_batch_to_the_same_bits(
    asked, tmp_path, monkeypatch, capsys, name, seconds, lines
):
    """Answers are on the disk after every batch, or when the signal arrives."""
    model, batches = asked
    undisturbed, shortened = ask(model, name), model.scorer.truncated
    expected = batches.copy()
    assert len(expected) > 4
    batches.clear()
    on_disk = []

    def signal_after_the_third():
        kept = tmp_path / "answers" / f"sft.{name}.jsonl"
        on_disk.append(kept.read_bytes().count(b"\n") if kept.exists() else 0)
        if len(on_disk) == 3:
            raise StageInterrupted(signal.SIGTERM)

    monkeypatch.setattr(kept_answers, "WRITE_SECONDS", seconds)
    with pytest.raises(StageInterrupted):
        ask(model, name, stage_in(tmp_path, signal_after_the_third))
    assert on_disk == lines and batches == expected[:3]
    assert ask(model, name, stage_in(tmp_path)) == undisturbed and model.scorer.truncated == shortened
    assert batches == expected, "each batch is asked once"
    assert f"sft.{name}: 3 of {len(expected)} batches were finished before, continuing" in capsys.readouterr().out
    assert ask(model, name, stage_in(tmp_path)) == undisturbed
    assert batches == expected, "nothing is left to ask"


def journal_of_every_batch(asked, tmp_path, monkeypatch):
    """Ask "domain", a line for every batch; return samples, batches and the journal, and forget what was asked."""
    model, batches = asked
    monkeypatch.setattr(kept_answers, "WRITE_SECONDS", 0.0)
    samples = ask(model, "domain", stage_in(tmp_path))
    expected = batches.copy()
    batches.clear()
    return samples, expected, tmp_path / "answers" / "sft.domain.jsonl"


def test_a_line_that_a_kill_tore_is_asked_again(asked, tmp_path, monkeypatch):
    model, batches = asked
    undisturbed, expected, path = journal_of_every_batch(asked, tmp_path, monkeypatch)
    path.write_bytes(path.read_bytes()[:-5])
    assert ask(model, "domain", stage_in(tmp_path)) == undisturbed and batches == expected[-1:]


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()], ids=["EIO", "ctrl-C"]
)
@pytest.mark.parametrize("name", RECORDS)
def test_a_write_that_failed_leaves_each_batch_its_own_answers(asked, tmp_path, monkeypatch, name, error):
    """The second line is on the disk when its fsync fails or a second Ctrl-C cuts it short."""
    model, batches = asked
    undisturbed = ask(model, name)
    expected = batches.copy()
    batches.clear()
    sync, lines = os.fsync, []

    def fails_once(descriptor):
        lines.extend([descriptor] * stat.S_ISREG(os.fstat(descriptor).st_mode))
        if len(lines) == 2:
            lines.append(None)
            raise error
        sync(descriptor)

    monkeypatch.setattr(kept_answers, "WRITE_SECONDS", 0.0)
    with pytest.raises(type(error)), monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails_once)
        ask(model, name, stage_in(tmp_path))
    assert batches == expected[:2]
    assert ask(model, name, stage_in(tmp_path)) == undisturbed and batches == expected


def test_lines_that_repeat_batches_or_leave_some_out_are_not_taken(asked, tmp_path, monkeypatch):
    model, batches = asked
    undisturbed, expected, path = journal_of_every_batch(asked, tmp_path, monkeypatch)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == len(expected) > 4
    path.write_bytes(b"".join([lines[0], lines[0], lines[1], lines[3], lines[0]]))
    assert ask(model, "domain", stage_in(tmp_path)) == undisturbed and batches == expected[2:]
    assert ask(model, "domain", stage_in(tmp_path)) == undisturbed and batches == expected[2:], "all are kept now"


def test_more_answers_than_batches_are_a_failure(asked, tmp_path):
    model, batches = asked
    ask(model, "python_choice", stage_in(tmp_path))
    journal = Journal(tmp_path / "answers" / "sft.python_choice.jsonl")
    journal.append({**journal.records[0], "first": len(batches)})
    journal.close()
    with pytest.raises(StageFailure, match=r"sft\.python_choice\.jsonl: \d+ answers to \d+ batches.*; remove the file"):
        ask(model, "python_choice", stage_in(tmp_path))


def test_answers_to_other_batches_are_not_taken_for_these(asked, tmp_path):
    """Without shared prompts the same questions make other rows."""
    model, batches = asked
    ask(model, "python_choice", stage_in(tmp_path))
    batches.clear()
    model.scorer._shares = False
    alone = ask(model, "python_choice")
    expected = batches.copy()
    batches.clear()
    assert ask(model, "python_choice", stage_in(tmp_path)) == alone and batches == expected
    batches.clear()
    model.scorer._shares = True
    ask(model, "python_choice", stage_in(tmp_path))
    assert batches == [], "the earlier ones are still there"


def test_nothing_is_left_behind_when_no_batch_was_answered(tmp_path):
    with KeptAnswers(stage_in(tmp_path), "sft.domain"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", RECORDS)
def test_a_batch_that_does_not_fit_into_memory_is_asked_in_pieces(asked, tmp_path, monkeypatch, capsys, name):
    model, batches = asked
    model.batch_tokens = model.scorer.batch_tokens = 400
    undisturbed = ask(model, name)
    score, generate, largest = model.scorer._score_batch, model.model.generate, 1

    def limited(rows, do):
        if len(rows) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return do()

    monkeypatch.setattr(model.scorer, "_score_batch", lambda rows: limited(rows, lambda: score(rows)))
    monkeypatch.setattr(model.model, "generate", lambda ids, **more: limited(ids, lambda: generate(ids, **more)))
    batches.clear()
    pieces = ask(model, name, stage_in(tmp_path))
    assert [sample.score for sample in pieces] == pytest.approx([sample.score for sample in undisturbed], rel=1e-4)
    assert batches and all(len(batch) == 1 for batch in batches)
    assert f"sft.{name}: memory ran out, so batches were done in pieces" in capsys.readouterr().out
    largest = 0
    with pytest.raises(StageFailure, match=f"sft.{name}: not even one request fits; set evaluate.dtype"):
        ask(model, name, stage_in(tmp_path / "again"))


@pytest.mark.parametrize("name", RECORDS)
def test_the_size_that_fits_is_kept_for_the_batches_that_follow(asked, tmp_path, monkeypatch, name):
    """A quarter of a batch fits, in tokens: the first batch finds out, and no later one, long or short, fails again."""
    model, batches = asked
    undisturbed = ask(model, name)
    new_tokens = 12 if name == "gsm8k" else 0
    longest = new_tokens + max(len(row) for batch in batches for row in batch)
    model.batch_tokens = model.scorer.batch_tokens = 4 * longest
    whole = ask(model, name)
    score, generate, tried = model.scorer._score_batch, model.model.generate, []

    def limited(lengths, do):
        tried.append(len(lengths) * (new_tokens + max(lengths)))
        if tried[-1] > longest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return do()

    monkeypatch.setattr(
        model.scorer, "_score_batch", lambda rows: limited([len(row.tokens) for row in rows], lambda: score(rows))
    )
    monkeypatch.setattr(
        model.model, "generate", lambda ids, **more: limited([len(row) for row in ids], lambda: generate(ids, **more))
    )
    batches.clear()
    pieces = ask(model, name, stage_in(tmp_path))
    for expected in (undisturbed, whole):
        assert [sample.score for sample in pieces] == pytest.approx([sample.score for sample in expected], rel=1e-4)
    failed = [size > longest for size in tried]
    assert 1 <= sum(failed) <= 2 and not any(failed[2:]) and len(tried) > 6
    batches.clear()
    assert ask(model, name, stage_in(tmp_path)) == pieces and batches == [], "whole batches were kept"
