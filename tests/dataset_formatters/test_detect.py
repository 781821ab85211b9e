"""Detection of a format, validation of a file, the command line, and ShareGPT as Alpaca."""

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_formatters import (
    FORMAT_HANDLERS,
    MalformedRecord,
    convert_sharegpt_to_alpaca,
    detect_dataset_format,
    validate_dataset,
)
from dataset_formatters.__main__ import main
from dataset_formatters.detect import MARKS, SPECIFIC_TO_GENERAL, records_read
from pipeline_lib.config.sources import ChatFormat, PairFormat
from pipeline_lib.sources.base import Dropped
from pipeline_lib.sources.json_rows import read_json, read_json_lines
from pipeline_lib.stage import UserError

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SAID = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]

RECORDS = [
    ("messages", {"messages": TURNS}),
    ("messages", TURNS),
    ("sharegpt", {"conversations": SAID, "id": "identity_0"}),
    ("alpaca", {"instruction": "q", "input": "", "output": "a"}),
    ("dolly", {"instruction": "q", "context": "", "response": "a", "category": "open_qa"}),
    ("oasst", {"message_tree_id": "t", "prompt": {"role": "prompter", "text": "q", "replies": [
        {"role": "assistant", "text": "a", "replies": []}]}}),
    ("gsm8k", {"question": "q", "answer": "2+2=<<2+2=4>>4\n#### 4"}),
    ("orca-math", {"question": "q", "answer": "It is 4."}),
    ("metamath", {"type": "GSM_SV", "query": "q", "original_question": "o", "response": "The answer is: 4"}),
    ("mathinstruct", {"source": "data/PoT/gsm.json", "instruction": "q", "output": "print(4)"}),
    ("math", {"problem": "q", "level": "Level 1", "type": "Algebra", "solution": "It is \\boxed{4}."}),
    ("aqua", {"question": "q", "options": ["A)1", "B)4"], "rationale": "Add.", "correct": "B"}),
    ("arc", {"id": "1", "answerKey": "B", "question": {
        "stem": "q", "choices": [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}]}}),
    ("arc", {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}),
    ("logiqa", {"context": "c", "question": "q", "answers": ["a", "b"], "label": 1}),
    ("logiqa", {"text": "c", "question": "q", "options": ["a", "b"], "answer": "b"}),
    ("openorca", {"id": "cot.1", "system_prompt": "", "question": "q", "response": "a"}),
    ("cot-collection", {"source": "q", "rationale": "r", "target": "a", "task": "t", "type": "CoT"}),
    ("glaive", {"system": "SYSTEM: You help.", "chat": "USER: q\n\n\nASSISTANT: a <|endoftext|>"}),
    ("hermes", {"conversations": [*SAID[:1], {"from": "gpt", "value": '<tool_call>{"name": "f"}</tool_call>'}],
                "tools": '[{"name": "f"}]'}),
    ("xlam", {"query": "q", "answers": '[{"name": "f"}]', "tools": '[{"name": "f", "parameters": {}}]'}),
    ("gorilla", {"code": "###Instruction: q\n###Output: <<<api_call>>>: f()", "api_call": "f()"}),
    ("toolbench", {"query": "q", "response": "a", "tools": [{"name": "f"}]}),
    ("preference", {"prompt": "q", "chosen": "a", "rejected": "b"}),
    # UltraFeedback as Zephyr was trained on it: the better answer is there as a conversation, too
    ("preference", {"prompt": "q", "prompt_id": "1", "chosen": TURNS, "rejected": TURNS, "messages": TURNS}),
    ("preference", {"chosen": TURNS, "rejected": TURNS}),
    ("sharegpt-preference", {"conversations": SAID[:1], "chosen": SAID[1], "rejected": SAID[1]}),
    ("hh-rlhf", {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}),
    ("orca-dpo", {"system": "", "question": "q", "chosen": "a", "rejected": "b"}),
    ("openai-preference", {"input": {"messages": TURNS[:1]}, "preferred_output": TURNS[1:],
                           "non_preferred_output": TURNS[1:]}),
    ("ultrafeedback", {"instruction": "q", "completions": [
        {"response": "a", "overall_score": 5}, {"response": "b", "overall_score": 4}]}),
    ("stack-exchange", {"question": "q", "response_j": "a", "response_k": "b"}),
]  # fmt: skip


def test_the_order_names_every_format_of_the_configuration_once():
    assert sorted(SPECIFIC_TO_GENERAL) == sorted(get_args(ChatFormat) + get_args(PairFormat))
    assert FORMAT_HANDLERS.keys() <= set(SPECIFIC_TO_GENERAL) and MARKS.keys() <= set(SPECIFIC_TO_GENERAL)


@pytest.mark.parametrize(("name", "record"), RECORDS)
def test_the_records_of_a_format_are_told_even_with_a_few_bad_ones(name, record):
    assert detect_dataset_format([record]) == name
    assert detect_dataset_format([None, *[record] * 20, {"text": "a document"}]) == name


@pytest.mark.parametrize("records", [[], [{}], ["q", 7, None, []], [{"text": "a"}, {"messages": TURNS}]])
def test_no_format_is_named_that_reads_half_or_less(records):
    assert detect_dataset_format(records) is None


def test_the_most_specific_of_those_that_read_about_as_many_is_named():
    def reads(*numbers):
        def handler(record, where):
            if record not in numbers:
                raise MalformedRecord("other", where, "another")
            return {}

        return handler

    handlers = {"orca-math": reads(*range(20)), "gsm8k": reads(*range(19)), "alpaca": reads(0)}
    assert list(records_read(range(20), handlers).items()) == [("gsm8k", 19), ("orca-math", 20), ("alpaca", 1)]
    assert detect_dataset_format(range(20), handlers) == "gsm8k"
    assert detect_dataset_format(range(20), {**handlers, "gsm8k": reads(*range(15))}) == "orca-math"
    assert detect_dataset_format(range(20), {"mine": reads(*range(20)), **handlers, "gsm8k": reads()}) == "orca-math"


@pytest.mark.parametrize(
    ("special", "general", "reader", "marked", "plain"),
    [
        ("mathinstruct", "alpaca", "alpaca", {"source": "data/CoT/gsm_train.json", "instruction": "q", "output": "a"},
         {"source": "seed", "instruction": "q", "output": "a"}),
        ("hermes", "sharegpt", "sharegpt",
         {"conversations": [SAID[0], {"from": "gpt", "value": "<tool_call>{}</tool_call>"}]},
         {"conversations": SAID}),
        ("toolbench", "sharegpt", "sharegpt",
         {"conversations": [SAID[0], {"from": "gpt", "value": "Action: f\nAction Input: {}"}]},
         {"conversations": SAID, "tools": [{"name": "f"}]}),
        ("toolbench", "metamath", "toolbench", {"query": "q", "response": "a", "tools": [{"name": "f"}]},
         {"query": "q", "response": "a", "type": "GSM_Rephrased"}),
    ],
)  # fmt: skip
def test_formats_that_read_the_same_records_are_told_by_their_mark(special, general, reader, marked, plain):
    handlers = dict.fromkeys((special, general), FORMAT_HANDLERS[reader])
    assert detect_dataset_format([marked] * 3, handlers) == special
    assert detect_dataset_format([plain] * 3, handlers) == general
    for odd in (None, 7, [None], [{"value": 7}], {"data/": 1}):
        assert MARKS[special]({"conversations": odd, "source": odd}) is False


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from([key for _, record in RECORDS if isinstance(record, dict) for key in record]), inner, max_size=4
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.lists(json_values, max_size=4))
def test_any_sample_is_told_or_not_and_the_format_told_reads_more_than_half(sample):
    name = detect_dataset_format(sample)
    assert name is None or 2 * records_read(sample)[name] > len(sample)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("alpaca", "alpaca/alpaca_en_demo.json"),
        ("alpaca", "alpaca/alpaca_tiny.json"),
        (None, "alpaca/gpteacher_codegen-instruct.json"),
        (None, "alpaca/seed_tasks.jsonl"),
        (None, "dolly_hhrlhf/dolly_hhrlhf_train_small.part1.jsonl"),
        ("oasst", "oasst/en_100_tree.part1.jsonl"),
        ("sharegpt", "sharegpt/dummy_conversation.json"),
        ("messages", "sharegpt/openai_sft.jsonl"),
        ("sharegpt", "glaive/glaive_toolcall_en_demo.part1.json"),
        ("messages", "toolcall/stock_toolcall_training.jsonl"),
        ("gsm8k", "gsm8k/train.jsonl"),
        ("orca-math", "hf_rows_quoted/orca_math_rows.jsonl"),
        ("metamath", "hf_rows_quoted/metamathqa_rows.jsonl"),
        ("mathinstruct", "hf_rows_quoted/mathinstruct_rows.jsonl"),
        ("math", "math/MATH_test.part1.jsonl.gz"),
        ("aqua", "math/AQuA_dev.json"),
        ("arc", "arc/ARC-Easy-Dev.sample.jsonl"),
        ("arc", "ai2_science_ndmc/AI2-8thGr-NDMC-Feb2016-Train.jsonl"),
        ("logiqa", "logiqa2/dev.jsonl"),
        ("openorca", "hf_rows_quoted/openorca_rows.jsonl"),
        ("hh-rlhf", "preference/hh-rlhf_harmless-base_test.part1.jsonl.gz"),
        ("openai-preference", "preference/orca_dpo_pairs_azure.part1.jsonl"),
        ("orca-dpo", "hf_rows_quoted/orca_dpo_pairs_rows.jsonl"),
        ("stack-exchange", "preference/stack_exchange_paired_tiny.json"),
        ("xlam", "hf_rows_quoted/xlam_function_calling_row.jsonl"),
        ("glaive", "glaive/glaive_v2_raw_rows.part1.jsonl"),
        ("gorilla", "gorilla/apibench/torchhub_train.json"),
        ("sharegpt-preference", "preference/dpo_en_demo.part1.json"),
    ],
)
def test_genuine_files_are_told(shared_data, name, file):
    assert validate_dataset(shared_data / file).format_type == name


def write(path, records):
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    openers = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records, indent=1))
    else:
        with openers.get(path.suffix, open)(path, "wb") as file:
            file.write(lines)
    return path


ALPACA = [{"instruction": f"What is {n}?", "input": "", "output": f"{n} is a whole number."} for n in range(30)]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".jsonl.gz", ".jsonl.bz2", ".ndjson.xz"])
def test_a_file_is_validated_in_every_layout(tmp_path, suffix):
    result = validate_dataset(str(write(tmp_path / f"chat{suffix}", ALPACA)))
    assert (result.is_valid, result.format_type, result.total_samples) == (True, "alpaca", 30)
    assert (result.errors, result.warnings, result.refused) == ((), (), {})
    assert result.sample_preview == FORMAT_HANDLERS["alpaca"](ALPACA[0], "first")
    with pytest.raises(FrozenInstanceError):
        result.is_valid = False


def test_every_refused_record_is_counted_and_ten_are_shown(tmp_path):
    path = write(tmp_path / "chat.jsonl", [{"instruction": "q"}] * 12 + ALPACA)
    path.write_text(path.read_text() + '\n{"instruction": \n' + "[" * 100_000 + "\n")
    result = validate_dataset(path)
    assert (result.is_valid, result.total_samples) == (False, 44)
    assert result.refused == {"missing_field": 12, "not_json": 2} and len(result.errors) == 10
    assert result.errors[0] == 'chat.jsonl:1: no field "output" (missing_field)'


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz"])
def test_half_of_a_surrogate_pair_is_refused_as_stage_01_drops_it(tmp_path, suffix):
    halves = [{"instruction": "a \ud83d", "output": "b"}, {"instruction": "a", "output": "b", "\udc00": 1}]
    whole = [{"instruction": "Smile!", "output": "It is \U0001f600, and \\ud83d is text."}, *ALPACA]
    path = write(tmp_path / f"chat{suffix}", [*halves, *whole])
    read = read_json if suffix == ".json" else read_json_lines
    rows = list(read(path, "chat", "" if suffix != ".jsonl.gz" else ".gz"))
    dropped = [row for row in rows if isinstance(row, Dropped)]
    assert [row.reason for row in dropped] == ["not UTF-8"] * 2 and len(rows) == 33
    result = validate_dataset(path)
    assert (result.is_valid, result.format_type, result.total_samples) == (False, "alpaca", 33)
    assert result.refused == {"not_utf8": 2}
    where = "chat.json, record 1" if suffix == ".json" else f"chat{suffix}:1"
    assert result.errors[0] == f"{where}: half of a surrogate pair, which no UTF-8 file can hold (not_utf8)"


def test_warnings_tell_what_is_worth_a_look(tmp_path):
    odd = [ALPACA[3], {"instruction": "a", "output": "No."}, {"instruction": "b", "output": "word " * 1001}]
    chinese = {"instruction": "c", "output": "这是一个没有空格的完整回答。"}
    result = validate_dataset(write(tmp_path / "chat.jsonl", [*ALPACA, *odd, chinese]))
    assert result.is_valid and set(result.warnings) == {
        "1 of 34 records come again, the first is chat.jsonl:31",
        "1 of 34 records have an answer of fewer than 3 words, the first is chat.jsonl:32",
        "1 of 34 records have an answer of more than 1000 words, the first is chat.jsonl:33",
    }
    pair = {"prompt": "q", "chosen": "the same answer", "rejected": "the same answer"}
    result = validate_dataset(write(tmp_path / "pairs.jsonl", [pair]))
    assert result.warnings == ("1 of 1 records have the same answer on both sides, the first is pairs.jsonl:1",)


def test_a_file_without_a_format_or_without_records_is_not_valid(tmp_path):
    result = validate_dataset(write(tmp_path / "texts.jsonl", [{"text": "a", "id": 1}] * 3))
    assert (result.is_valid, result.format_type, result.total_samples, result.sample_preview) == (False, None, 3, None)
    assert result.errors == (
        "texts.jsonl:1: no format reads more than half of the first 3 records; this one has id, text",
    )
    assert not validate_dataset(write(tmp_path / "none.jsonl", []), "alpaca").is_valid
    assert "no records" in validate_dataset(write(tmp_path / "empty.json", [])).errors[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("chat.jsonl", None, "no such file"),
        ("chat.txt", b"text", "cannot be read here; use .jsonl, .json or .parquet"),
        ("chat.docx", b"", "no reader for this suffix"),
        ("chat.jsonl.zst", b"", "cannot be read here"),
        ("chat.json", b"[1, 2", "not JSON"),
        ("chat.json", b"[" * 100_000, "not JSON"),
        ("chat.json", b'{\n "messages": []\n}', "an array of records or one a line, and this has neither"),
        ("chat.jsonl", b"\xff\xfe", "cannot be read to its end"),
        ("chat.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9)[:-9], "cannot be read to its end"),
        ("chat.jsonl.gz", b"not gzip", "cannot be read to its end"),
        ("chat.jsonl.xz", b"not xz", "cannot be read to its end"),
        ("chat.parquet", b"not parquet", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, capsys, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        validate_dataset(tmp_path / name)
    assert main([str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_the_command_says_who_reads_what_and_shows_the_first(tmp_path, capsys):
    path = write(tmp_path / "chat.jsonl", ALPACA)
    assert main([str(path)]) == 0
    printed = capsys.readouterr().out
    assert "alpaca reads 30 of the first 30 records" in printed and "sharegpt reads" not in printed
    assert "format alpaca: 30 of 30 records are read" in printed and '"content": "What is 0?"' in printed
    assert main([str(path), "--format", "dolly"]) == 1
    printed = capsys.readouterr().out
    assert "format dolly: 0 of 30 records are read\n  dropped as missing_field: 30\n" in printed
    assert main([str(path), "--format", "alpacca"]) == 2
    assert capsys.readouterr().err.startswith('error: unknown format "alpacca"; the nearest is "alpaca" (known: al')


def test_the_command_starts_without_heavy_libraries_and_prints_what_a_terminal_cannot(tmp_path, scripts):
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"instruction": "é ☃", "output": "Naïve answers have words."}) + "\n")
    code = (
        "import sys, runpy; sys.argv = ['x', sys.argv[1]]\n"
        "try: runpy.run_module('dataset_formatters', run_name='__main__')\n"
        "finally: print({'torch', 'transformers', 'pyarrow', 'numpy', 'pydantic'} & set(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": str(scripts), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert '"content": "? ?"' in done.stdout and done.stdout.endswith("set()\n")


def test_a_reader_that_leaves_ends_the_command_without_a_traceback(tmp_path, scripts):
    path = write(tmp_path / "chat.jsonl", [{"instruction": "q", "output": "long " * 200_000}])
    command = f"{sys.executable} -m dataset_formatters {path}; echo code $? >&2"
    done = subprocess.run(
        ["bash", "-c", f"({command}) | head -1"],
        env={**os.environ, "PYTHONPATH": str(scripts)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.count("\n") == 1 and done.stderr == "code 0\n"


turn_texts = st.text(min_size=1, max_size=12).filter(lambda text: text.strip() not in ("", "<noinput>"))


@given(st.none() | turn_texts, st.booleans(), st.lists(st.tuples(turn_texts, turn_texts), min_size=1, max_size=4))
def test_alpaca_made_of_sharegpt_is_the_same_conversation(system, as_a_turn, pairs):
    turns = [{"from": who, "value": text} for pair in pairs for who, text in zip(("human", "gpt"), pair, strict=True)]
    record = {"conversations": turns}
    if system is not None and as_a_turn:
        turns.insert(0, {"from": "system", "value": system})
    elif system is not None:
        record["system"] = system
    converted = convert_sharegpt_to_alpaca(record)
    assert FORMAT_HANDLERS["alpaca"](converted, "here") == FORMAT_HANDLERS["sharegpt"](record, "here")
    assert ("system" in converted, len(converted.get("history", []))) == (system is not None, len(pairs) - 1)


def test_one_turn_of_sharegpt_is_a_plain_alpaca_record():
    assert convert_sharegpt_to_alpaca({"conversations": SAID}) == {"instruction": "q", "input": "", "output": "a"}


def test_what_alpaca_cannot_hold_is_refused():
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    for record, reason in (
        ({"conversations": SAID, "tools": [function]}, "tools_offered"),
        ({"conversations": SAID[:1]}, "ends_without_answer"),
        ([], "wrong_type"),
    ):
        with pytest.raises(MalformedRecord) as refusal:
            convert_sharegpt_to_alpaca(record, "chat.jsonl:4")
        assert refusal.value.reason == reason and str(refusal.value).startswith("chat.jsonl:4: ")


def test_genuine_sharegpt_conversations_survive_the_way_through_alpaca(shared_data):
    records = json.loads((shared_data / "sharegpt" / "dummy_conversation.json").read_text("utf-8"))
    for record in records:
        converted = convert_sharegpt_to_alpaca(record)
        assert FORMAT_HANDLERS["alpaca"](converted, "here") == FORMAT_HANDLERS["sharegpt"](record, "here")
