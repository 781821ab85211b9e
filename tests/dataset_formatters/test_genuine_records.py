"""Every formatter on genuine records of its data set: how many are kept, and why the others are not."""

import pytest

from dataset_formatters import FORMAT_HANDLERS, MalformedRecord
from genuine_records import format_all, read


@pytest.mark.parametrize(
    ("name", "file", "kept", "refused"),
    [
        ("alpaca", "alpaca/alpaca_en_demo.json", 999, {}),
        ("alpaca", "alpaca/alpaca_tiny.json", 100, {}),
        ("alpaca", "alpaca/gpteacher_codegen-instruct.json", 0, {"missing_field": 4535}),
        ("sharegpt", "sharegpt/dummy_conversation.json", 500, {}),
        ("sharegpt", "glaive/glaive_toolcall_en_demo.part1.json", 200, {}),
        ("messages", "toolcall/stock_toolcall_training.jsonl", 86, {}),
        ("messages", "sharegpt/openai_sft.jsonl", 128, {}),
        ("messages", "preference/kto_en_demo.part1.json", 107, {"judged_bad": 93}),
        ("sharegpt-preference", "preference/dpo_en_demo.part1.json", 200, {}),
        ("gsm8k", "gsm8k/train.jsonl", 7473, {}),
        ("hh-rlhf", "preference/hh-rlhf_harmless-base_test.part1.jsonl.gz", 1150,
         {"empty_side": 4, "turns_do_not_alternate": 2}),
    ],
)  # fmt: skip
def test_genuine_records_are_kept_or_refused_for_a_known_reason(shared_data, name, file, kept, refused):
    made, reasons = format_all(name, read(shared_data / file))
    assert (len(made), dict(reasons)) == (kept, refused)


def test_genuine_gsm8k_answers_keep_their_text_and_value(shared_data):
    records = read(shared_data / "gsm8k" / "train.jsonl")
    made, _ = format_all("gsm8k", records)
    assert [record for record, _ in made] == records
    for record, conversation in made:
        answer = conversation["messages"][-1]["content"]
        steps, _, final = answer.rpartition("\n#### ")
        original = record["answer"].rpartition("#### ")[2].replace(",", "")
        assert float(final) == float(original) and "<<" not in steps
    first = made[0][1]["messages"][-1]["content"]
    assert first == (
        "Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether in April and May.\n#### 72"
    )


def test_genuine_hh_rlhf_transcripts_can_be_rebuilt_from_their_turns(shared_data):
    records = read(shared_data / "preference" / "hh-rlhf_harmless-base_test.part1.jsonl.gz")
    speaker = {"user": "Human", "assistant": "Assistant"}
    for number, record in enumerate(records):
        try:
            made = FORMAT_HANDLERS["hh-rlhf"](record, f"{number}")
        except MalformedRecord:
            continue
        for side in ("chosen", "rejected"):
            turns = made["prompt"] + made[side]
            rebuilt = " ".join(f"{speaker[turn['role']]}: {turn['content']}" for turn in turns)
            assert rebuilt.split() == record[side].split()
