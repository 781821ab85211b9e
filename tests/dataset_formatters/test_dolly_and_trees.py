"""Dolly's records, and OpenAssistant's trees: which branch becomes the conversation, what is refused."""

import json
import random
import sys
from collections import Counter

import pytest

from dataset_formatters import FORMAT_HANDLERS, MalformedRecord

WHERE = "sft/trees.jsonl:1"


def turns(name, record):
    return [(turn["role"], turn["content"]) for turn in FORMAT_HANDLERS[name](record, WHERE)["messages"]]


def refused(name, record):
    with pytest.raises(MalformedRecord) as refusal:
        FORMAT_HANDLERS[name](record, WHERE)
    assert str(refusal.value).startswith(WHERE + ": ")
    return refusal.value.reason


def test_dolly_puts_the_context_after_the_instruction_and_keeps_its_citation_marks():
    record = {"instruction": "When did it open?", "context": "It opened in 1902.[1] ", "response": " In 1902.\n"}
    expected = [("user", "When did it open?\n\nIt opened in 1902.[1]"), ("assistant", "In 1902.")]
    assert turns("dolly", {**record, "category": "closed_qa"}) == expected


@pytest.mark.parametrize("nothing", [{}, {"context": ""}, {"context": None}, {"input": " "}])
def test_dolly_without_context_asks_the_instruction_alone(nothing):
    assert turns("dolly", {"instruction": "q", "response": "a", **nothing}) == [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"instruction": "q", "output": "a"}, "missing_field"),
        ({"instruction": " ", "response": "a"}, "empty_field"),
        ({"instruction": "q", "response": "a", "context": ["c"]}, "wrong_type"),
        ({"instruction": "q", "response": "a", "input": "a text that would be lost"}, "unread_input"),
        ([], "wrong_type"),
    ],
)
def test_dolly_refuses_by_name(record, reason):
    assert refused("dolly", record) == reason


def said(text, *replies, role=None, **fields):
    """One message of a tree; roles are told by the first letter of the text, q or a."""
    role = role or ("prompter" if text.startswith("q") else "assistant")
    return {"message_id": text, "text": text, "role": role, "replies": list(replies), **fields}


def tree(prompt, **fields):
    return {"message_tree_id": "t", "tree_state": "ready_for_export", "prompt": prompt, **fields}


def branch(prompt):
    return " ".join(text for _, text in turns("oasst", tree(prompt)))


def test_the_best_reply_is_the_lowest_rank_then_one_without_rank_then_the_first():
    assert branch(said("q", said("a1", rank=2), said("a2", rank=0), said("a3", rank=1))) == "q a2"
    assert branch(said("q", said("a1"), said("a2", rank=None), said("a3", rank=7))) == "q a3"
    assert branch(said("q", said("a1", rank=None), said("a2"))) == "q a1"
    assert branch(said("q", said("a1", rank=3), said("a2", rank=3))) == "q a1"


def test_the_branch_goes_on_from_the_best_reply_and_ends_with_its_last_answer():
    best = said("a2", said("q3", said("a4", said("q5")), rank=1), said("q6", rank=0), rank=0)
    assert branch(said("q1", said("a1", said("q", said("a"))), best)) == "q1 a2"
    best["replies"].pop()
    assert branch(said("q1", said("a1", said("q", said("a"))), best)) == "q1 a2 q3 a4"


@pytest.mark.parametrize("mark", [{"deleted": True}, {"review_result": False}])
def test_a_message_that_is_deleted_or_rejected_is_skipped_with_what_follows_it(mark):
    rejected = said("a1", said("q2", said("a2")), rank=0, **mark)
    assert branch(said("q1", rejected, said("a3", rank=1))) == "q1 a3"
    assert refused("oasst", tree(said("q1", rejected))) == "ends_without_answer"
    assert refused("oasst", tree(said("q1", said("a1"), **mark))) == "prompt_rejected"


def test_a_message_that_nobody_has_reviewed_is_read():
    assert branch(said("q", said("a", review_result=None, deleted=None))) == "q a"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("text", "no_tree"),
        ({}, "no_tree"),
        ({"prompt": "q"}, "no_tree"),
        (tree(said("q", said("a")), tree_state="aborted_low_grade"), "tree_not_ready"),
        (tree(said("q")), "ends_without_answer"),
        (tree(said("q", said("q2", said("a")))), "turns_do_not_alternate"),
        (tree(said("a", said("q"))), "starts_with_assistant"),
        (tree(said("q", said("a", role="system"))), "unknown_role"),
        (tree(said("q", said("a", role=None) | {"role": 1})), "unknown_role"),
        (tree(said("q", said("a", rank="best"))), "wrong_type"),
        (tree(said("q", "a")), "wrong_type"),
        (tree(said("q") | {"replies": {"0": said("a")}}), "wrong_type"),
        (tree(said("q", said("a") | {"text": None})), "missing_field"),
        (tree(said("q", said("a") | {"text": " "})), "empty_field"),
    ],
)
def test_trees_refuse_by_name(record, reason):
    assert refused("oasst", record) == reason


def test_a_row_of_the_parquet_files_is_refused_with_the_file_that_has_the_trees():
    row = {"message_id": "m", "parent_id": None, "text": "q", "role": "prompter", "message_tree_id": "t", "rank": None}
    with pytest.raises(MalformedRecord, match=r"2023-04-12_oasst_ready\.trees\.jsonl\.gz") as refusal:
        FORMAT_HANDLERS["oasst"](row, WHERE)
    assert refusal.value.reason == "single_message"


def test_a_tree_may_be_deeper_than_the_stack():
    depth = 3 * sys.getrecursionlimit()
    message = said("a")
    for number in range(2 * depth - 1):
        message = said("qa"[number % 2], message)
    made = turns("oasst", tree(message))
    assert len(made) == 2 * depth and made[0][0] == "user" and made[-1] == ("assistant", "a")


def every_branch(message, taken=()):
    """The oracle: all paths of a tree, each with the keys by which its messages were chosen."""
    path = (*taken, message)
    yield path
    for place, reply in enumerate(message["replies"]):
        if not reply.get("deleted"):
            rank = reply.get("rank")
            yield from every_branch({**reply, "key": (rank is None, rank or 0, place)}, path)


def test_the_branch_is_the_first_of_all_branches_ordered_by_rank():
    dice = random.Random(7)

    def grow(depth):
        replies = [grow(depth - 1) for _ in range(dice.randrange(4))] if depth else []
        message = said("aq"[depth % 2] + str(dice.random()), *replies, deleted=dice.random() < 0.2)
        return message | {"rank": dice.choice([None, 0, 1, 2])}

    for _ in range(300):
        root = grow(5) | {"deleted": False}
        paths = [path for path in every_branch(root) if len(path) > 1]
        # longest first among those that begin alike, so that a path is never beaten by its own beginning
        best = min(paths, key=lambda path: [*(m["key"] for m in path[1:]), (True, float("inf"), 0)], default=(root,))
        while best[-1]["role"] == "prompter" and len(best) > 1:
            best = best[:-1]
        if len(best) == 1:
            assert refused("oasst", tree(root)) == "ends_without_answer"
        else:
            assert branch(root) == " ".join(message["text"] for message in best)


def test_genuine_trees_become_conversations(shared_data):
    lines = (shared_data / "oasst" / "en_100_tree.part1.jsonl").read_bytes().splitlines()
    records = [json.loads(line) for line in lines]
    made = [turns("oasst", record) for record in records]
    assert [sum(len(each) == length for each in made) for length in (2, 4)] == [31, 19] and len(made) == 50
    for record, conversation in zip(records, made, strict=True):
        message = record["prompt"]
        for number, (role, text) in enumerate(conversation):
            assert (role, text) == (["user", "assistant"][number % 2], message["text"].strip())
            ranked = sorted((m for m in message["replies"] if m.get("rank") is not None), key=lambda m: m["rank"])
            message = (ranked or message["replies"] or [None])[0]


def test_genuine_records_of_other_sets_are_not_dolly(shared_data):
    records = json.loads((shared_data / "alpaca" / "gpteacher_codegen-instruct.json").read_text("utf-8"))
    reasons = Counter()
    for record in records:
        try:
            FORMAT_HANDLERS["dolly"](record, WHERE)
        except MalformedRecord as refusal:
            reasons[refusal.reason] += 1
    assert (len(records) - reasons.total(), dict(reasons)) == (955, {"unread_input": 3580})
    mixed = (shared_data / "dolly_hhrlhf" / "dolly_hhrlhf_train_small.part1.jsonl").read_text("utf-8")
    assert {refused("dolly", json.loads(line)) for line in mixed.splitlines()} == {"missing_field"}
