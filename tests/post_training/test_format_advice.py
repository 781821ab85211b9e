"""A source of which every record was dropped: the stage says which format would read it, if another one does."""

import json
import shutil

import pyarrow.parquet as parquet
import pytest

from pipeline_lib.post_training.originals import SourceFile, read_originals
from pipeline_lib.stage.manifest import MANIFEST, Manifest

SHAREGPT = [
    {"conversations": [{"from": "human", "value": f"Open {n}."}, {"from": "gpt", "value": f"It is open: {n}."}]}
    for n in range(20)
]
PAIRS = [{"question": f"Open {n}?", "chosen": f"Yes, {n} opens.", "rejected": "No."} for n in range(20)]
ORCA = [{"question": f"What is {n}?", "answer": f"It is the number {n}.\n#### {n}"} for n in range(20)]
ROWS = [{"message_id": str(n), "parent_id": None, "text": "q", "role": "prompter"} for n in range(3)]
LONG = [{"question": "q", "answer": "word " * 300 + f"\n#### {n}"} for n in range(5)]


def notes(run, stage="06_sft_data"):
    """The notes on dropped sources; another tells that the sources are not those of the configuration."""
    return [note for note in Manifest.read(run / stage / MANIFEST).notes if "was dropped" in note]


@pytest.mark.parametrize(
    ("style", "records", "said"),
    [
        ("alpaca", SHAREGPT, "(missing_field); \"only\": they look like sharegpt: set format: sharegpt"),
        ("messages", PAIRS, "they look like orca-dpo, which makes preference pairs: set kind: preference and format: "
                            "orca-dpo"),
        ("oasst", ROWS, "\"only\": the first is sft/only.jsonl:1: one message is no conversation; read the trees"
                        " instead, files: [2023-04-12_oasst_ready.trees.jsonl.gz]"),
        ("sharegpt", [{"text": "a"}], "\"only\": the first is sft/only.jsonl:1: no field \"conversations\""),
        ("gsm8k", LONG, "(too_long); \"only\": the first is sft/only.jsonl:1: "),
    ],
)  # fmt: skip
def test_when_nothing_is_left_the_failure_says_what_to_do(run_copy, helpers, capsys, style, records, said):
    helpers.write_sources(run_copy, [("only", "sft", style, records)])
    assert helpers.run_script("06_prepare_sft_data.py", run_copy) == 1
    failure = next(line for line in capsys.readouterr().err.splitlines() if "is left to train on" in line)
    assert f"no sft record is left to train on: all {len(records)} were dropped" in failure and said in failure


def test_pairs_are_told_from_conversations(run_copy, helpers, capsys):
    records = [{"instruction": "a", "input": "", "output": "b"}]
    helpers.write_sources(run_copy, [("only", "preference", "hh-rlhf", records)])
    assert helpers.run_script("08_prepare_dpo_data.py", run_copy) == 1
    said = "they look like alpaca, which makes conversations: set kind: sft and format: alpaca"
    assert said in capsys.readouterr().err


def test_a_domain_is_told_in_the_same_way(aligned_run, tmp_path, helpers, capsys):
    run = shutil.copytree(aligned_run, tmp_path / "run")
    helpers.write_sources(run, [helpers.sources[0], ("parts", "domain", "alpaca", SHAREGPT)])
    assert helpers.run_script("10_lora_finetune.py", run) == 1
    failure = 'no domain record is left to train on: all 20 were dropped (missing_field); "parts": they look like'
    assert f"{failure} sharegpt: set format: sharegpt" in capsys.readouterr().err
    helpers.write_sources(run, [*helpers.sources, ("parts", "domain", "alpaca", SHAREGPT)])
    assert helpers.run_script("10_lora_finetune.py", run) == 0
    said = 'every record of "parts" was dropped: they look like sharegpt: set format: sharegpt'
    assert notes(run, "10_lora") == [said]


def test_a_source_that_is_dropped_beside_others_is_a_note_on_the_card(run_copy, helpers, capsys):
    repeats = [{"instruction": f"Open {n}.", "output": f"It is open: {n}."} for n in range(2)]
    sources = [("chat", "sft", "alpaca", SHAREGPT), ("good", "sft", "sharegpt", SHAREGPT)]
    helpers.write_sources(run_copy, [*sources, ("twins", "sft", "alpaca", repeats)])
    assert helpers.run_script("06_prepare_sft_data.py", run_copy) == 0
    expected = [
        'every record of "chat" was dropped: they look like sharegpt: set format: sharegpt',
        'every record of "twins" was dropped: the first is sft/twins.jsonl:1: the same text came before',
    ]
    assert notes(run_copy) == expected
    card = capsys.readouterr().out
    assert all(f"note         {line}" in card for line in expected)
    kept = [parquet.read_table(run_copy / "06_sft_data" / f"{side}.parquet") for side in ("train", "val")]
    assert [source for table in kept for source in table["source"].to_pylist()] == ["good"] * 20


def test_a_source_with_some_records_left_gets_no_note(run_copy, helpers):
    good = {"instruction": "a", "output": "It is b."}
    helpers.write_sources(run_copy, [("chat", "sft", "alpaca", [*SHAREGPT, good, {**good, "instruction": "c"}])])
    assert helpers.run_script("06_prepare_sft_data.py", run_copy) == 0
    assert notes(run_copy) == []


def test_a_line_that_is_nested_too_deeply_is_not_json_to_us(tmp_path):
    path = tmp_path / "trees.jsonl"
    path.write_text("[" * 100_000 + "]" * 100_000 + "\n" + json.dumps({"a": 1}) + "\n")
    found = read_originals([SourceFile("trees", "oasst", "sft/trees.jsonl", path)])
    assert [original.value for original in found] == [None, {"a": 1}]
