"""The preference formatters: prompts and answers are told apart, differing prompts are refused."""

import pytest

from dataset_formatters import FORMAT_HANDLERS, MalformedRecord

WHERE = "preference/set.jsonl:1"
PROMPT = [{"role": "user", "content": "q"}]


def answer(text):
    return [{"role": "assistant", "content": text}]


def refused(name, record):
    with pytest.raises(MalformedRecord) as refusal:
        FORMAT_HANDLERS[name](record, WHERE)
    return refusal.value.reason


def test_plain_strings_and_messages_are_read_alike():
    plain = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    turns = {"prompt": PROMPT, "chosen": answer("good"), "rejected": answer("bad")}
    whole = {"prompt": PROMPT, "chosen": PROMPT + answer("good"), "rejected": PROMPT + answer("bad")}
    implied = {"prompt": None, "chosen": PROMPT + answer("good"), "rejected": PROMPT + answer("bad")}
    expected = {"prompt": PROMPT, "chosen": answer("good"), "rejected": answer("bad")}
    for record in (plain, turns, whole, implied):
        assert FORMAT_HANDLERS["preference"](record, WHERE) == expected


def test_sharegpt_pairs_have_one_turn_a_side_and_an_optional_system_text():
    said = {"from": "human", "value": " q"}
    record = {
        "conversations": [said],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    }
    expected = {"prompt": PROMPT, "chosen": answer("a"), "rejected": answer("b")}
    assert FORMAT_HANDLERS["sharegpt-preference"](record, WHERE) == expected
    system = {"role": "system", "content": "s"}
    made = FORMAT_HANDLERS["sharegpt-preference"]({**record, "system": "s"}, WHERE)
    assert made == {**expected, "prompt": [system, *PROMPT]}
    called = {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}
    for wrong, reason in (
        ({"chosen": None}, "wrong_type"),
        ({"rejected": said}, "answer_is_not_one_turn"),
        ({"rejected": {"from": "gpt", "value": ""}}, "empty_side"),
        ({"chosen": called}, "tool_turn"),
        ({"conversations": [said, record["chosen"]]}, "prompt_ends_with_answer"),
    ):
        assert refused("sharegpt-preference", {**record, **wrong}) == reason


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "q", "chosen": "good", "rejected": ""}, "empty_side"),
        ({"prompt": "", "chosen": "good", "rejected": "bad"}, "empty_turn"),
        ({"prompt": [{"role": "system", "content": ""}, *PROMPT], "chosen": "good", "rejected": "bad"}, "empty_system"),
        ({"prompt": PROMPT + answer("a"), "chosen": "good", "rejected": "bad"}, "prompt_ends_with_answer"),
        ({"prompt": "q", "chosen": PROMPT, "rejected": "bad"}, "answer_is_not_one_turn"),
        ({"prompt": "another", "chosen": PROMPT + answer("a"), "rejected": "bad"}, "prompt_mismatch"),
        ({"prompt": "q", "chosen": "good"}, "missing_field"),
        ({"chosen": "good", "rejected": "bad"}, "missing_field"),
        ({"chosen": PROMPT + answer("a"), "rejected": [*answer("x"), *answer("b")]}, "prompt_mismatch"),
    ],
)
def test_preference_refuses_by_name(record, reason):
    assert refused("preference", record) == reason


@pytest.mark.parametrize(
    "before",
    [
        [{"role": "system", "content": "s"}],
        [{"role": "user", "content": "q0"}, *answer("a0")],
        [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, *answer("a0")],
    ],
)
def test_a_prompt_that_is_the_last_question_only_is_completed_by_its_sides(before):
    chosen, rejected = [*before, *PROMPT, *answer("good")], [*before, *PROMPT, *answer("bad")]
    expected = {"prompt": [*before, *PROMPT], "chosen": answer("good"), "rejected": answer("bad")}
    record = {"prompt": " q", "chosen": chosen, "rejected": rejected}
    assert FORMAT_HANDLERS["preference"](record, WHERE) == expected
    assert FORMAT_HANDLERS["preference"]({**record, "prompt": None}, WHERE) == expected
    if before[0]["role"] == "system":
        assert FORMAT_HANDLERS["preference"]({**record, "system": "s"}, WHERE) == expected
        assert refused("preference", {**record, "system": "t"}) == "two_systems"
    for change in (
        {"prompt": "another"},
        {"rejected": answer("bad")},  # an answer to which of the two prompts?
        {"rejected": [*PROMPT, *answer("bad")]},
        {"rejected": [*before[:-1], {**before[-1], "content": "x"}, *PROMPT, *answer("bad")]},
        {"chosen": [*before, *answer("good")], "rejected": [*before, *answer("bad")]},
    ):
        assert refused("preference", {**record, **change}) == "prompt_mismatch"


def test_hh_rlhf_splits_at_the_last_answer_and_keeps_speaker_names_inside_a_turn():
    common = "\n\nHuman: hi\n\nAssistant: I said Human: once.\n\nHuman: and?"
    made = FORMAT_HANDLERS["hh-rlhf"](
        {"chosen": common + "\n\nAssistant: yes", "rejected": common + "\n\nAssistant: no"}, WHERE
    )
    assert [turn["content"] for turn in made["prompt"]] == ["hi", "I said Human: once.", "and?"]
    assert (made["chosen"], made["rejected"]) == (answer("yes"), answer("no"))


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("\n\nHuman: a\n\nAssistant: x", "\n\nHuman: b\n\nAssistant: y", "prompt_mismatch"),
        ("\n\nHuman: a\n\nAssistant: x", "\n\nHuman: a\n\nAssistant: ", "empty_side"),
        ("just text", "\n\nHuman: a\n\nAssistant: y", "not_a_transcript"),
        ("\n\nHuman: a\n\nHuman: x", "\n\nHuman: a\n\nHuman: y", "answer_is_not_one_turn"),
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant: x", "\n\nHuman: a\n\nHuman: b\n\nAssistant: y",
         "turns_do_not_alternate"),
    ],
)  # fmt: skip
def test_hh_rlhf_refuses_by_name(chosen, rejected, reason):
    assert refused("hh-rlhf", {"chosen": chosen, "rejected": rejected}) == reason
