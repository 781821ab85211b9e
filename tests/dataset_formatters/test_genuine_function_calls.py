"""Formatters of function calls on genuine records: how many are kept, why the others are not, and what they become."""

import json

import pytest

from dataset_formatters import FORMAT_HANDLERS
from function_turns import GLAIVE_SYSTEM, hermes
from genuine_records import format_all, read


def calls_in(conversation):
    for turn in conversation["messages"]:
        for each in turn.get("tool_calls", ()):
            yield each["function"]["name"], json.loads(each["function"]["arguments"])


@pytest.mark.parametrize(
    ("name", "file", "count", "reasons"),
    [
        ("glaive", "glaive/glaive_v2_raw_rows.part1.jsonl", 3, {}),
        ("xlam", "hf_rows_quoted/xlam_function_calling_row.jsonl", 1, {}),
        ("gorilla", "gorilla/apibench/torchhub_train.json", 833, {"no_api_call": 1, "malformed_answer": 3}),
        ("gorilla", "gorilla/apibench/huggingface_eval.part1.json", 440,
         {"no_api_call": 6, "no_answer": 3, "malformed_answer": 1}),
        ("gorilla", "gorilla/bfcl/BFCL_v4_simple_python.json", 0, {"no_answer": 400}),
        ("gorilla", "gorilla/bfcl/BFCL_v4_irrelevance.json", 0, {"no_answer": 240}),
        ("gorilla", "gorilla/bfcl/BFCL_v4_multi_turn_base.part1.json", 0, {"no_answer": 100}),
    ],
)  # fmt: skip
def test_genuine_records_are_kept_or_refused_for_a_known_reason(shared_data, name, file, count, reasons):
    kept, refused = format_all(name, read(shared_data / file))
    assert (len(kept), refused) == (count, reasons)


def test_genuine_glaive_rows_say_the_same_in_both_layouts(shared_data):
    """The ShareGPT conversion of the data set, written back in the raw layout, is read as the conversion is."""
    speaker = {"human": "USER", "gpt": "ASSISTANT", "function_call": "ASSISTANT", "observation": "FUNCTION RESPONSE"}
    records = json.loads((shared_data / "glaive" / "glaive_toolcall_en_demo.part1.json").read_text(encoding="utf-8"))
    called = 0
    for record in records:
        converted = FORMAT_HANDLERS["sharegpt"](record, "converted")
        chat = ""
        for turn in record["conversations"]:
            text = turn["value"]
            if turn["from"] == "function_call":
                call = json.loads(text)
                arguments = json.dumps(call["arguments"], ensure_ascii=False)
                text = f'<functioncall> {{"name": "{call["name"]}", "arguments": \'{arguments}\'}}'
                called += 1
            mark = " <|endoftext|>" if speaker[turn["from"]] == "ASSISTANT" else ""
            chat += f"{speaker[turn['from']]}: {text}{mark}\n\n\n"
        tools = json.loads(record["tools"] or "[]")
        system = GLAIVE_SYSTEM + "\n\n".join(json.dumps(tool, indent=4) for tool in tools) if tools else ""
        raw = FORMAT_HANDLERS["glaive"]({"system": system, "chat": chat}, "raw")
        assert [turn for turn in raw["messages"] if turn["role"] != "system"] == converted["messages"]
        assert raw["tools"] == converted["tools"]
    assert called == 137


def test_a_genuine_hermes_row_keeps_its_calls_and_loses_its_prompt(shared_data):
    file = shared_data / "hf_rows_quoted" / "hermes_function_calling_v1_conversations_row.json"
    turns = json.loads(file.read_text(encoding="utf-8"))
    made = FORMAT_HANDLERS["hermes"]({"conversations": turns}, "row")
    assert [turn["role"] for turn in made["messages"]] == ["user", "assistant"]
    assert [name for name, _ in calls_in(made)] == ["get_camera_live_feed", "record_camera_feed", "get_recorded_feed"]
    assert len(json.loads(made["tools"])) == 5


def test_genuine_hermes_examples_are_read(shared_data):
    examples = json.loads((shared_data / "hermes" / "few_shot.json").read_text(encoding="utf-8"))
    read_calls = []
    for example in examples:
        text = example["example"].strip().strip("`")
        system, rest = text.split("USER:")
        question, answer = rest.split("ASSISTANT:")
        made = FORMAT_HANDLERS["hermes"](hermes(("system", system), ("human", question), ("gpt", answer)), "example")
        assert len(json.loads(made["tools"])) == 2
        read_calls += calls_in(made)
    assert read_calls == [
        ("calculate_distance", {"origin": "New York", "destination": "Los Angeles", "mode": "car"}),
        ("generate_password", {"length": 8}),
    ]


def test_genuine_apibench_answers_begin_with_the_call_of_their_row(shared_data):
    for file in ("torchhub_train.json", "huggingface_eval.part1.json"):
        kept, _ = format_all("gorilla", read(shared_data / "gorilla" / "apibench" / file))
        for record, made in kept:
            question, answer = (turn["content"] for turn in made["messages"])
            written = record["code"].replace("\\'", "'").replace('\\"', '"')
            assert question.split("\n\n")[0] in written and answer.split("\n\n")[0] in written
            assert "<<<" not in answer and "'api_provider'" not in answer and "'code'" not in answer


@pytest.mark.parametrize(("file", "count"), [("simple_python", 400), ("multiple", 200), ("parallel", 200)])
def test_genuine_leaderboard_rows_call_what_their_answers_accept(shared_data, file, count):
    folder = shared_data / "gorilla" / "bfcl"
    answers = {row["id"]: row["ground_truth"] for row in read(folder / "possible_answer" / f"BFCL_v4_{file}.json")}
    rows = [{**row, "ground_truth": answers[row["id"]]} for row in read(folder / f"BFCL_v4_{file}.json")]
    kept, refused = format_all("gorilla", rows)
    assert (len(kept), refused) == (count, {})
    for record, made in kept:
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in json.loads(made["tools"])}
        assert '"dict"' not in made["tools"] and '"float"' not in made["tools"]
        for (name, arguments), truth in zip(calls_in(made), record["ground_truth"], strict=True):
            assert set(schemas[name]["required"]) <= set(arguments) <= set(schemas[name]["properties"])
            for key, accepted in truth[name].items():
                assert (key in arguments) or accepted[0] == ""
                if key in arguments and not any("{" in json.dumps(value) for value in accepted):
                    assert arguments[key] in accepted


def test_genuine_leaderboard_rows_of_several_turns_have_no_results(shared_data):
    folder, name = shared_data / "gorilla" / "bfcl", "BFCL_v4_multi_turn_base.part1.json"
    answers = {row["id"]: row["ground_truth"] for row in read(folder / "possible_answer" / name)}
    _, refused = format_all("gorilla", [{**row, "ground_truth": answers[row["id"]]} for row in read(folder / name)])
    assert refused == {"several_questions": 98, "malformed_answer": 2}


def as_tool_llama(generated):
    """Return the row that ToolBench makes of the last trail of an answer file."""
    turns = []
    for turn in generated["train_messages"][-1]:
        text = turn["content"]
        if turn["role"] == "system":
            text = f"{text}\nSpecifically, you have access to the following APIs: {generated['function']!r}"
        if "function_call" in turn:
            called = turn["function_call"]
            thought = f"\nThought: {text or ''}"
            text = f"{thought}\nAction: {called['name']}\nAction Input: {called['arguments']}"
        turns.append({"from": turn["role"], "value": text})
    return {"conversations": turns}


def test_genuine_toolbench_answers_are_read_alike_as_files_and_as_rows(shared_data):
    files = sorted((shared_data / "toolbench" / "answer").glob("*/*.json"))
    records = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    kept, refused = format_all("toolbench", records)
    assert (len(kept), refused) == (4, {"gave_up": 3, "search_retry": 2, "no_answer": 1})
    for record, made in kept:
        generated = record["answer_generation"]
        assert made["messages"][-1]["content"] == json.loads(generated["final_answer"])["final_answer"].strip()
        assert made["messages"][1]["content"] == generated["query"].strip()
        system = made["messages"][0]["content"]
        assert generated["train_messages"][0][0]["content"].strip().endswith(system)
        assert system.startswith("You have access of the following tools:\n1.")
        assert "Finish" not in made["tools"]
        assert FORMAT_HANDLERS["toolbench"](as_tool_llama(generated), "row") == made


@pytest.mark.parametrize(("file", "count"), [("G1_query.json", 5), ("G2_query.json", 3)])
def test_genuine_toolbench_queries_have_no_response(shared_data, file, count):
    records = json.loads((shared_data / "toolbench" / "instruction" / file).read_text(encoding="utf-8"))
    assert format_all("toolbench", records) == ([], {"missing_field": count})
