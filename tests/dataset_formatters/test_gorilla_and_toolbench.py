"""Gorilla and ToolBench: what their rows become, and what is refused under which name."""

import json

import pytest

from function_turns import SEARCH_PROMPT, TOOLS, WEATHER, assistant, calls, made, reason_of, result, user

# Gorilla

BENCH_ANSWER = "hub.load('a', 'b')\n\nLoads b, the 'best'.\n\nimport hub\nm = hub.load('a', 'b')"


@pytest.mark.parametrize(
    "code",
    [
        "###Instruction: Find b.\n###Output: <<<domain>>>: Vision\n<<<api_call>>>: hub.load('a', 'b')\n"
        "<<<api_provider>>>: Hub\n<<<explanation>>>:Loads b, the 'best'.\n"
        "<<<code>>>: import hub\nm = hub.load('a', 'b')\n",
        "### Instruction:\nFind b.\n\n### Output:\n<<<api_call>>>: hub.load('a', 'b')\n"
        "<<<explanation>>>: Loads b, the 'best'.\n<<<code>>>: import hub\nm = hub.load('a', 'b')",
        "{'Instruction': Find b., 'Output': {'domain': 'Vision', 'api_call': \"hub.load('a', 'b')\", 'api_provider':"
        " 'Hub', 'explanation': 'Loads b, the \\'best\\'.', 'code': 'import hub\nm = hub.load('a', 'b')'}}",
        "{'Instruction': \"Find b.\", 'Output': {'api_call': 'hub.load('a', 'b')',"
        " 'explanation': \"Loads b, the 'best'.\", 'code': \"import hub\nm = hub.load('a', 'b')\"}}",
    ],
)
def test_apibench_answers_with_call_explanation_and_code(code):
    record = {"code": code, "api_call": "hub.load(a='a', b='b')", "provider": "Hub", "api_data": {}}
    assert made("gorilla", record) == ([user("Find b."), assistant(BENCH_ANSWER)], None)


def test_apibench_input_follows_the_instruction_and_missing_parts_are_missing():
    code = "###Instruction: Find b.\n###Input: A text.\n###Output: <<<api_call>>>: hub.load('b')\n<<<domain>>>: Vision"
    assert made("gorilla", {"code": code})[0] == [user("Find b.\n\nA text."), assistant("hub.load('b')")]


LEADERBOARD = {
    "id": "parallel_1",
    "question": [[{"role": "user", "content": "Play both."}]],
    "function": [
        {
            "name": "spotify.play",
            "parameters": {
                "type": "dict",
                "properties": {"artist": {"type": "string"}, "volume": {"type": "float"}, "when": {"type": "dict"}},
                "required": ["artist"],
            },
        }
    ],
}
PLAY_SCHEMA = {
    "type": "object",
    "properties": {"artist": {"type": "string"}, "volume": {"type": "number"}, "when": {"type": "object"}},
    "required": ["artist"],
}


@pytest.mark.parametrize(
    ("accepted", "arguments"),
    [
        ({"artist": ["Swift", "Taylor Swift"]}, {"artist": "Swift"}),
        ({"artist": ["Swift"], "volume": ["", 3]}, {"artist": "Swift"}),
        ({"artist": ["Swift"], "volume": [3, ""]}, {"artist": "Swift", "volume": 3}),
        ({"artist": ["", "Swift"]}, {"artist": "Swift"}),
        ({"artist": [""]}, {"artist": ""}),
        ({"artist": [["a", "b"]], "volume": [0]}, {"artist": ["a", "b"], "volume": 0}),
        ({"artist": ["a"], "when": [{"day": ["Mon", "Monday"], "hour": [""]}]},
         {"artist": "a", "when": {"day": "Mon"}}),
        ({"artist": ["a"], "when": [[{"day": ["Mon"]}, {"day": ["Tue"]}]]},
         {"artist": "a", "when": [{"day": "Mon"}, {"day": "Tue"}]}),
    ],
)  # fmt: skip
def test_leaderboard_rows_take_the_first_accepted_value(accepted, arguments):
    messages, tools = made("gorilla", {**LEADERBOARD, "ground_truth": [{"spotify.play": accepted}] * 2})
    assert messages == [user("Play both."), calls(("spotify.play", arguments), ("spotify.play", arguments))]
    assert tools == [{"type": "function", "function": {"name": "spotify.play", "parameters": PLAY_SCHEMA}}]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"code": "###Instruction: Find b."}, "no_answer"),
        ({"code": "###Output: <<<api_call>>>: b()"}, "missing_field"),
        ({"code": "Find b."}, "missing_field"),
        ({"code": "###Instruction: Sum up.\n###Input: A text.\n###Output: It is short."}, "no_api_call"),
        ({"code": "{'Instruction': Judge., 'Input': 'a', 'Output': 'contradiction'}"}, "no_api_call"),
        ({"code": "###Instruction: a\n###Output: <<<api_call>>>: b()\n###Output: c"}, "malformed_answer"),
        ({"code": "{'Instruction': a, 'Output': {'api_call': 'b(), 'explanation': 'c'}}"}, "malformed_answer"),
        ({"api_call": "b()"}, "missing_field"),
        (LEADERBOARD, "no_answer"),
        ({**LEADERBOARD, "question": "q"}, "wrong_type"),
        ({**LEADERBOARD, "question": ["q"], "ground_truth": [{"spotify.play": {}}]}, "wrong_type"),
        (
            {**LEADERBOARD, "question": LEADERBOARD["question"] * 2, "ground_truth": [["play('a')"]]},
            "several_questions",
        ),
        ({**LEADERBOARD, "ground_truth": [["play('a')"]]}, "malformed_answer"),
        ({**LEADERBOARD, "ground_truth": [{"spotify.play": {"artist": "a"}}]}, "malformed_answer"),
        ({**LEADERBOARD, "ground_truth": [{"spotify.play": {"artist": []}}]}, "malformed_answer"),
        ({**LEADERBOARD, "ground_truth": [{"spotify.play": None}]}, "malformed_answer"),
        ({**LEADERBOARD, "ground_truth": [{"play": {}}]}, "unknown_function"),
    ],
)
def test_gorilla_refuses_by_name(record, reason):
    assert reason_of("gorilla", record) == reason


# ToolBench

FINISH = {
    "name": "Finish",
    "description": "Gives the answer.",
    "parameters": {"type": "object", "properties": {"return_type": {"type": "string"}}},
}
SUMMARY = "You have access of the following tools:\n1.met: Weather and time"
GIVEN = {"return_type": "give_answer", "final_answer": "It is 3 degrees.\n"}


def finishing(arguments):
    return ("assistant", f"\nThought: I know.\nAction: Finish\nAction Input: {json.dumps(arguments, indent=2)}")


def tool_llama(*turns, names=("from", "value"), tools=(WEATHER, FINISH)):
    system = f"{SEARCH_PROMPT}{SUMMARY}\n\nSpecifically, you have access to the following APIs: {list(tools)!r}"
    turns = [("system", system), ("user", "\nHow cold is it?\nBegin!\n"), *turns]
    return {"id": "Step 5", "conversations": [dict(zip(names, turn, strict=True)) for turn in turns]}


CALLING = ("assistant", '\nThought: Rome.\nThought: I ask.\nAction: weather\nAction Input: {\n  "city": "Rome"\n}')
ANSWERED = ("function", '{"error": "", "response": "3"}')


@pytest.mark.parametrize("names", [("from", "value"), ("role", "content")])
def test_toolbench_thoughts_and_actions_become_calls_and_finish_the_answer(names):
    messages, tools = made("toolbench", tool_llama(CALLING, ANSWERED, finishing(GIVEN), names=names))
    assert messages == [
        {"role": "system", "content": SUMMARY},
        user("How cold is it?"),
        calls(("weather", {"city": "Rome"}), say="Rome.\n\nI ask."),
        result('{"error": "", "response": "3"}'),
        assistant("It is 3 degrees."),
    ]
    assert tools == TOOLS[:1]


def test_toolbench_rows_may_end_with_a_call_and_thoughts_may_speak_of_actions():
    thought = "\nThought: \nAction: I call it.\nAction: weather\nAction Input: {}"
    messages, _ = made("toolbench", tool_llama(CALLING, ANSWERED, ("assistant", thought)))
    assert messages[-1] == calls(("weather", {}), say="Action: I call it.")


def answer_file(*turns, **fields):
    trail = [{"role": "system", "content": SEARCH_PROMPT + SUMMARY}, user("\nHow cold is it?\nBegin!\n"), *turns]
    generated = {"valid_data": True, "function": [WEATHER, FINISH], "train_messages": [trail[:1], trail], "chain": []}
    return {"win": True, "answer_generation": {**generated, **fields}}


def asked(name, arguments, content=None):
    return {
        "role": "assistant",
        "content": content,
        "function_call": {"name": name, "arguments": json.dumps(arguments)},
    }


def test_toolbench_answer_files_are_read_to_the_end_of_the_trail():
    thinks = assistant("Rome, I guess.")
    function = {"role": "function", "name": "weather", "content": "3"}
    trail = [thinks, asked("weather", {"city": "Rome"}), function, asked("Finish", GIVEN, "I know.")]
    assert made("toolbench", answer_file(*trail)) == (
        [
            {"role": "system", "content": SUMMARY},
            user("How cold is it?"),
            calls(("weather", {"city": "Rome"}), say="Rome, I guess."),
            result("3"),
            assistant("It is 3 degrees."),
        ],
        TOOLS[:1],
    )


RETRY = "This is not the first time you try this task, all previous trails failed.\n..."
GIVES_UP = {"return_type": "give_up_and_restart"}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (tool_llama(CALLING, ANSWERED, finishing(GIVES_UP)), "gave_up"),
        (tool_llama(CALLING, ANSWERED, ("user", RETRY), finishing(GIVES_UP)), "gave_up"),
        (tool_llama(CALLING, ANSWERED, ("user", RETRY), finishing(GIVEN)), "search_retry"),
        (tool_llama(finishing({"return_type": "give_answer"})), "no_answer"),
        (tool_llama(finishing({"final_answer": "3"})), "no_answer"),
        (tool_llama(("assistant", "\nThought: I wait.")), "malformed_call"),
        (tool_llama(("assistant", "Thought: a\nAction: weather\nAction Input: Rome")), "not_json"),
        (tool_llama(("assistant", "Thought: a\nAction: invented\nAction Input: {}")), "unknown_function"),
        (tool_llama(CALLING, ANSWERED), "ends_without_answer"),
        (answer_file(asked("Finish", GIVES_UP)), "gave_up"),
        (answer_file(asked("Finish", GIVEN), valid_data=False), "no_answer"),
        (answer_file(train_messages=[]), "no_answer"),
        (answer_file(train_messages=[{}]), "wrong_type"),
        ({"answer_generation": []}, "wrong_type"),
        ({"query": "How cold is it?", "api_list": []}, "missing_field"),
    ],
)
def test_toolbench_refuses_by_name(record, reason):
    assert reason_of("toolbench", record) == reason


def test_toolbench_reads_query_and_response_and_keeps_other_system_texts():
    assert made("toolbench", {"query": "q", "response": "a"}) == ([user("q"), assistant("a")], None)
    record = {"conversations": [{"from": "system", "value": "Be brief."}, {"from": "user", "value": "q"}]}
    record["conversations"].append({"from": "assistant", "value": "a"})
    assert made("toolbench", record)[0] == [{"role": "system", "content": "Be brief."}, user("q"), assistant("a")]
