"""Stages 06 and 08: every record is kept or dropped for a named reason, and the split depends on prompts alone."""

import json
import shutil
import threading

import pyarrow.parquet as parquet
import pytest

from pipeline_lib.post_training import prepared_data
from pipeline_lib.stage.ledger import Ledger
from pipeline_lib.stage.manifest import MANIFEST, Manifest


def rows(run, stage, side):
    return parquet.read_table(run / stage / f"{side}.parquet").to_pylist()


def ledger(run, stage):
    return Ledger.from_json(Manifest.read(run / stage / MANIFEST).ledger)


def drops(run, stage):
    entries = [entry for _, _, entry in ledger(run, stage).items()]
    return {reason: amount[0] for entry in entries for reason, amount in entry.dropped.items()}


def outputs(run, stage):
    return Manifest.read(run / stage / MANIFEST).outputs_digest


def test_instruction_data_is_kept_or_dropped_by_name(tiny_run):
    assert drops(tiny_run, "06_sft_data") == {
        "duplicate": 3, "empty_field": 1, "missing_field": 1, "too_long": 1, "control_token": 1,
    }  # fmt: skip
    kept = rows(tiny_run, "06_sft_data", "train") + rows(tiny_run, "06_sft_data", "val")
    assert len(kept) == len({row["id"] for row in kept}) == 80
    assert ledger(tiny_run, "06_sft_data").total("sft")["documents"] == 80
    assert set(kept[0]) == {"id", "source", "messages", "tools"}


def test_preference_pairs_are_kept_or_dropped_by_name(tiny_run):
    assert drops(tiny_run, "08_dpo_data") == {
        "identical_answers": 1, "empty_side": 1, "identical_after_truncation": 1, "prompt_too_long": 1,
    }  # fmt: skip
    kept = rows(tiny_run, "08_dpo_data", "train") + rows(tiny_run, "08_dpo_data", "val")
    assert len(kept) == 80 and set(kept[0]) == {"id", "source", "prompt", "chosen", "rejected"}


def test_every_dropped_record_has_a_receipt_that_says_where(tiny_run):
    receipts = rows(tiny_run, "06_sft_data", "dropped")
    assert len(receipts) == sum(drops(tiny_run, "06_sft_data").values())
    by_reason = {receipt["reason"]: receipt for receipt in receipts}
    assert by_reason["empty_field"]["where"] == "sft/chat.jsonl:44"
    assert by_reason["too_long"]["detail"].startswith("sft/chat.jsonl:46: ")


def test_the_solutions_lost_their_calculator_marks(tiny_run):
    for row in rows(tiny_run, "06_reasoning_data", "train"):
        assert "<<" not in row["messages"][-1]["content"] and "\n#### " in row["messages"][-1]["content"]


def prompts(rows_):
    return {json.dumps(row["messages"][0]) for row in rows_}


def test_no_prompt_is_on_both_sides_and_order_and_other_sources_move_nothing(run_copy, helpers):
    before = {side: prompts(rows(run_copy, "06_sft_data", side)) for side in ("train", "val")}
    assert before["val"] and not before["train"] & before["val"]
    name, kind, style, records = helpers.sources[0]
    twins = [{**record, "output": record.get("output", "") + " Really."} for record in records]
    extra = [{"instruction": f"new {n}", "output": "x"} for n in range(50)]
    helpers.write_sources(run_copy, [("extra", kind, style, extra), (name, kind, style, records[::-1] + twins)])
    assert helpers.run_script("06_prepare_sft_data.py", run_copy) == 0
    after = {side: prompts(rows(run_copy, "06_sft_data", side)) for side in ("train", "val")}
    assert before["val"] <= after["val"] and before["train"] <= after["train"]
    assert not after["train"] & after["val"]


def test_another_seed_holds_out_other_prompts(run_copy, helpers):
    before = prompts(rows(run_copy, "06_sft_data", "val"))
    assert helpers.run_script("06_prepare_sft_data.py", run_copy, "--seed", "7") == 0
    assert prompts(rows(run_copy, "06_sft_data", "val")) != before


@pytest.mark.parametrize("limit", [1, 3])
def test_the_held_out_side_respects_its_limit(run_copy, helpers, limit):
    assert helpers.run_script("06_prepare_sft_data.py", run_copy, "--val_limit", str(limit)) == 0
    assert len(rows(run_copy, "06_sft_data", "val")) == limit


def test_killed_between_batches_the_stage_continues_to_identical_files(run_copy, helpers, monkeypatch):
    expected = outputs(run_copy, "06_sft_data")
    shutil.rmtree(run_copy / "06_sft_data")
    monkeypatch.setattr(prepared_data, "BATCH", 20)
    whole, calls = prepared_data.check_batch, []

    def check_two_batches(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise RuntimeError("killed")
        return whole(*arguments)

    monkeypatch.setattr(prepared_data, "check_batch", check_two_batches)
    assert helpers.run_script("06_prepare_sft_data.py", run_copy) == 1
    calls.clear()
    monkeypatch.setattr(prepared_data, "check_batch", lambda *a: (calls.append(a), whole(*a))[1])
    assert helpers.run_script("06_prepare_sft_data.py", run_copy) == 0
    assert len(calls) == 3  # batches 3 to 5; the first two were not done again
    assert outputs(run_copy, "06_sft_data") == expected


def test_a_line_that_is_not_json_is_dropped_and_counted(run_copy, helpers):
    name, kind, style, records = helpers.sources[0]
    helpers.write_sources(run_copy, [(name, kind, style, ['{"instruction": ', *records])])
    assert helpers.run_script("06_prepare_sft_data.py", run_copy) == 0
    assert drops(run_copy, "06_sft_data")["not_json"] == 1


def test_an_unknown_format_is_a_user_error_that_names_the_nearest(run_copy, helpers, capsys):
    helpers.write_sources(run_copy, [("chat", "sft", "sharegtp", [{"a": 1}])])
    assert helpers.run_script("06_prepare_sft_data.py", run_copy) == 2
    assert 'unknown format "sharegtp"; the nearest is "sharegpt"' in capsys.readouterr().err


def test_no_source_is_an_error_for_instructions_and_a_note_for_reasoning(run_copy, helpers, capsys):
    helpers.write_sources(run_copy, [source for source in helpers.sources if source[1] == "domain"])
    assert helpers.run_script("06_prepare_sft_data.py", run_copy) == 2
    assert "no source of kind sft" in capsys.readouterr().err
    assert helpers.run_script("06_prepare_reasoning_data.py", run_copy) == 0
    assert rows(run_copy, "06_reasoning_data", "train") == []


def test_when_nothing_is_left_the_stage_fails_and_says_why(run_copy, helpers, capsys):
    helpers.write_sources(run_copy, [("chat", "sft", "alpaca", [{"instruction": "a", "output": ""}])])
    assert helpers.run_script("06_prepare_sft_data.py", run_copy) == 1
    assert "no sft record is left to train on: all 1 were dropped (empty_field)" in capsys.readouterr().err


def test_plan_estimates_without_writing(run_copy, helpers, capsys):
    shutil.rmtree(run_copy / "08_dpo_data")
    assert helpers.run_script("08_prepare_dpo_data.py", run_copy, "--plan") == 0
    assert "measured on the first 84 of " in capsys.readouterr().out
    assert not (run_copy / "08_dpo_data").exists()


def test_functions_and_calls_reach_the_tokens_of_training(run_copy, helpers, tokenizer):
    from pipeline_lib.post_training.examples import conversation_rows, read_examples

    function = {"name": "add", "description": "Sum.", "parameters": {"type": "object", "properties": {}}}
    records = [
        {
            "conversations": [
                {"from": "human", "value": f"Add 1 to {n}."},
                {"from": "function_call", "value": json.dumps({"name": "add", "arguments": {"a": 1, "b": n}})},
                {"from": "observation", "value": f"{n + 1}"},
                {"from": "gpt", "value": f"It is {n + 1}."},
            ],
            "tools": json.dumps([function]),
        }
        for n in range(20)
    ]
    wrong = json.loads(json.dumps(records[0]).replace("Add 1", "Take 1"))
    wrong["conversations"][1]["value"] = '{"name": "subtract", "arguments": {}}'
    helpers.write_sources(run_copy, [("calls", "sft", "sharegpt", [*records, wrong])])
    assert helpers.run_script("06_prepare_sft_data.py", run_copy, "--max_length", "1000") == 0
    assert drops(run_copy, "06_sft_data") == {"unknown_function": 1}
    kept = rows(run_copy, "06_sft_data", "train") + rows(run_copy, "06_sft_data", "val")
    assert len(kept) == 20 and all(json.loads(row["tools"])[0]["function"] == function for row in kept)
    call = kept[0]["messages"][1]["tool_calls"][0]
    assert call["function"]["name"] == "add" and json.loads(call["function"]["arguments"])["a"] == 1
    path = run_copy / "06_sft_data" / "train.parquet"
    examples = read_examples([path], conversation_rows, tokenizer, 1000, Ledger(), "sft")
    learnt = [token for token in examples.table["labels"][0].as_py() if token >= 0]
    assert tokenizer.decode(learnt).startswith('<tool_call>{"name": "add", "arguments": {"a": 1, "b": ')


def test_a_stage_that_fails_leaves_no_sampling_thread_behind(run_copy, helpers):
    """A program that runs many stages, such as these tests, would slow down with each one that was refused."""
    helpers.write_sources(run_copy, [("chat", "sft", "alpaca", [{"instruction": "q"}])])
    assert helpers.run_script("06_prepare_sft_data.py", run_copy) == 1
    assert "peak-memory" not in [thread.name for thread in threading.enumerate()]
