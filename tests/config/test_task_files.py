"""Task files: lm-eval's keys without the ones that run code, and errors that point at the line."""

import pytest

from pipeline_lib.config import PROJECT_ROOT
from pipeline_lib.config.task_files import read_task_file
from pipeline_lib.evaluation.harness import lm_eval_config
from pipeline_lib.stage import UserError

FOLDER = PROJECT_ROOT / "configs" / "eval_tasks"
GOOD = """task: quiz
source: quiz
metrics: {accuracy: acc_bytes}
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
"""
GENERATED = """task: quiz
source: quiz
metrics: {exact_match: exact_match}
output_type: generate_until
doc_to_text: question
doc_to_target: answer
generation_kwargs: {max_gen_toks: 8}
"""
CALLED = """task: quiz
source: quiz
metrics: {success: calls_match}
output_type: function_calls
doc_to_text: messages
doc_to_tools: tools
doc_to_target: calls
generation_kwargs: {max_gen_toks: 8}
"""


def write(tmp_path, text, name="quiz"):
    (tmp_path / f"{name}.yaml").write_text(text, "utf-8")
    return tmp_path


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_every_task_file_of_the_project_is_valid(name):
    task = read_task_file(FOLDER, name)
    for chat in (False, True):
        config = lm_eval_config(task, chat=chat)
        assert {metric["metric"] for metric in config["metric_list"]} == set(task.metrics.values())


def test_the_chat_keys_replace_the_plain_ones_only_for_chat_models(tmp_path):
    task = read_task_file(write(tmp_path, GOOD + "chat: {doc_to_text: '{{question}}?'}\n"), "quiz")
    assert lm_eval_config(task, chat=False)["doc_to_text"] == "question"
    assert lm_eval_config(task, chat=True)["doc_to_text"] == "{{question}}?"


def test_lm_eval_gets_the_generation_settings_and_filters_as_they_are_written(tmp_path):
    filters = "filter_list: [{name: n, filter: [{function: regex, group_select: -1}, {function: take_first}]}]\n"
    chat = "chat: {generation_kwargs: {until: ['<|im_end|>']}}\n"
    task = read_task_file(write(tmp_path, GENERATED + filters + chat), "quiz")
    plain, chatted = lm_eval_config(task, chat=False), lm_eval_config(task, chat=True)
    assert plain["generation_kwargs"] == {"max_gen_toks": 8}
    assert chatted["generation_kwargs"] == {"until": ["<|im_end|>"]}
    steps = [{"function": "regex", "group_select": -1}, {"function": "take_first"}]
    assert plain["filter_list"] == chatted["filter_list"] == [{"name": "n", "filter": steps}]


def test_an_empty_list_of_filters_is_none_so_that_a_task_can_leave_out_those_of_its_base(tmp_path):
    write(tmp_path, GENERATED + "filter_list: [{name: n, filter: [{function: take_first}]}]\n", "base")
    task = read_task_file(write(tmp_path, "base: base.yaml\nfilter_list: []\n"), "quiz")
    assert "filter_list" not in lm_eval_config(task, chat=False)


def test_bits_per_byte_is_declared_lower_is_better_and_accuracy_higher():
    directions = {
        metric["metric"]: metric["higher_is_better"]
        for name in ("heldout_docs", "domain", "python_choice", "arithmetic")
        for metric in lm_eval_config(read_task_file(FOLDER, name), chat=False)["metric_list"]
    }
    assert directions == {"bits_per_byte": False, "acc_bytes": True, "exact_match": True}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("doc_to_choice", "doc_to_chioce"), r"quiz\.yaml:6: unknown key 'doc_to_chioce'.*'doc_to_choice'"),
        (GOOD + "process_docs: !function evil.run\n", "not valid YAML"),
        (GOOD + "custom_dataset: os.system\n", "unknown key 'custom_dataset'"),
        (GOOD + "unsafe_code: true\n", "unknown key 'unsafe_code'"),
        (GOOD.replace("acc_bytes", "exact_match"), "multiple_choice has no metric exact_match; it has: acc, acc_norm"),
        (GOOD.replace("acc_bytes", "bleu"), r"quiz\.yaml:3: metrics\.accuracy"),
        (GOOD.replace("doc_to_choice: choices\n", ""), "multiple_choice needs doc_to_choice"),
        (
            GOOD.replace("multiple_choice", "generate_until").replace("acc_bytes", "exact_match"),
            "needs generation_kwargs",
        ),
        (GOOD.replace("task: quiz", "task: other"), "give both one name"),
        (
            GOOD.replace("multiple_choice", "loglikelihood").replace("acc_bytes", "acc").replace("answer", "0"),
            "loglikelihood needs doc_to_target to be a record key or a template of the text",
        ),
        (GENERATED.replace("doc_to_text: question\n", ""), "generate_until needs doc_to_text"),
        (
            GENERATED.replace("max_gen_toks", "max_gen_tok"),
            r"quiz\.yaml:7: unknown key 'generation_kwargs\.max_gen_tok'; did you mean 'max_gen_toks'\?",
        ),
        (GENERATED.replace("8}", "0}"), r"quiz\.yaml:7: generation_kwargs\.max_gen_toks"),
        (GENERATED.replace("8}", "8, do_sample: true}"), r"quiz\.yaml:7: .*answers are generated greedily"),
        (
            GENERATED + "chat: {generation_kwargs: {temperature: 0.7}}\n",
            r"quiz\.yaml:8: chat\.generation_kwargs\.temperature: answers are generated greedily",
        ),
        (
            GENERATED + "filter_list:\n- name: number\n  filter:\n  - {function: regex, regex_pattern: '(['}\n",
            r"quiz\.yaml:11: filter_list\.0\.filter\.0: '\(\[' is not a valid pattern",
        ),
        (GENERATED + "filter_list: [{name: number}]\n", r"quiz\.yaml:8: filter_list\.0\.filter: this key is required"),
        (
            GENERATED + "filter_list:\n- {name: strict, filter: [{function: take_first}]}\n"
            "- {name: loose, filter: [{function: take_first}]}\n",
            r"filter_list has 2 entries \(strict, loose\), and a metric has one value per item; keep one",
        ),
        (
            GOOD + "filter_list: [{name: number, filter: [{function: take_first}]}]\n",
            "filter_list extracts answers from generated text, and multiple_choice generates none; remove it",
        ),
        (
            GENERATED + "filter_list: [{name: n, filter: [{function: regex, group_select: '1'}]}]\n",
            r"quiz\.yaml:8: filter_list\.0\.filter\.0: group_select is the number of a match, an integer",
        ),
        (
            GENERATED + "filter_list: [{name: n, filter: [{function: map, mapping_dict: {a: 1}}]}]\n",
            r"quiz\.yaml:8: filter_list\.0\.filter\.0: mapping_dict leads from texts to texts",
        ),
        (
            GENERATED + "num_fewshot: 2\n",
            r"num_fewshot needs one place of examples: .* \(fewshot_split\), or fewshot_c",
        ),
        (GENERATED + "num_fewshot: -1\n", r"quiz\.yaml:8: num_fewshot"),
        (GENERATED + "num_fewshot: 2\nfewshot_split: quiz\n", "fewshot_split is quiz, whose records are asked"),
        (GENERATED + "fewshot_split: more\n", "there are examples and no prompt shows them; set num_fewshot"),
        (
            GENERATED + "num_fewshot: 2\nfewshot_config: {samples: [{question: a, answer: b}]}\n",
            r"num_fewshot is 2 and fewshot_config\.samples has 1 examples",
        ),
        (
            GENERATED + "num_fewshot: 1\nfewshot_split: x\nfewshot_config: {samples: [{question: a, answer: b}]}\n",
            "num_fewshot needs one place of examples",
        ),
        (
            GENERATED + "num_fewshot: 1\nfewshot_split: more\nfewshot_config: {sampler: balanced}\n",
            r"quiz\.yaml:10: fewshot_config\.sampler: .*'default' or 'first_n'",
        ),
        (
            GENERATED + "num_fewshot: 1\nfewshot_split: more\nfewshot_config: {process_docs: evil.run}\n",
            r"quiz\.yaml:10: unknown key 'fewshot_config\.process_docs'",
        ),
        (
            GENERATED + "num_fewshot: 1\nfewshot_split: more\nchat: {fewshot_config: {doc_to_target: 0}}\n",
            r"fewshot_config\.doc_to_target: the number of a choice needs multiple_choice",
        ),
        (
            GENERATED.replace("generate_until", "loglikelihood_rolling").replace(
                "exact_match: exact_match", "b: bits_per_byte"
            )
            + "num_fewshot: 1\nfewshot_split: more\n",
            "num_fewshot: loglikelihood_rolling scores whole texts, which have no prompt; remove it",
        ),
        (CALLED.replace("doc_to_tools: tools\n", ""), "doc_to_tools names the functions of a function_calls task"),
        (GENERATED + "doc_to_tools: tools\n", "doc_to_tools names the functions of a function_calls task"),
        (CALLED.replace("generation_kwargs: {max_gen_toks: 8}\n", ""), "function_calls needs generation_kwargs"),
        (CALLED + "description: Call.\n", "function_calls asks what the messages say; remove description"),
        (CALLED + "num_fewshot: 1\nfewshot_split: more\n", "function_calls shows conversations; put examples into"),
        (CALLED.replace("calls_match", "exact_match"), "function_calls has no metric exact_match; it has: calls_valid"),
        (GENERATED + "regexes_to_ignore: ['*']\n", r"quiz\.yaml:8: regexes_to_ignore\.0: '\*' is not a valid pattern"),
        (CALLED + "regexes_to_ignore: [',']\n", "regexes_to_ignore is for generate_until; function_calls ignores it"),
        (CALLED + "target_delimiter: ''\n", "target_delimiter is for multiple_choice, .*; function_calls ignores it"),
        (CALLED + "doc_to_choice: choices\n", "doc_to_choice is for .*; function_calls ignores it, so remove it"),
        (GOOD + "regexes_to_ignore: [',']\n", "regexes_to_ignore is for .*; multiple_choice ignores it"),
        (GOOD + "generation_kwargs: {max_gen_toks: 8}\n", "generation_kwargs is for generate_until, function_calls; m"),
        (GOOD + "chat: {generation_kwargs: {max_gen_toks: 8}}\n", r"chat\.generation_kwargs is for generate_until"),
        (GENERATED + "fewshot_config: {sampler: first_n}\n", "fewshot_config is for examples, and prompts show none"),
        (GENERATED + "fewshot_delimiter: x\n", "fewshot_delimiter is for examples, and prompts show none; set num_few"),
        (CALLED + "fewshot_delimiter: x\n", "fewshot_delimiter is for examples, and prompts show none"),
        (GENERATED + "chat: {fewshot_config: {doc_to_text: a}}\n", r"chat\.fewshot_config is for examples"),
        (
            GENERATED + "num_fewshot: 1\nfewshot_split: x\nchat: {num_fewshot: 0, fewshot_config: {doc_to_text: a}}\n",
            r"chat\.fewshot_config is for examples, and chat prompts show none; remove it",
        ),
    ],
)
def test_a_wrong_task_file_is_one_line_that_names_file_and_cause(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_task_file(write(tmp_path, text), "quiz")
    assert "quiz.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_key_that_a_base_has_for_other_requests_can_be_put_back_to_its_default(tmp_path):
    write(tmp_path, GENERATED + "regexes_to_ignore: [',']\n", "sums")
    changed = "base: sums.yaml\ntask: quiz\noutput_type: loglikelihood\nmetrics: {exact_match: acc}\n"
    changed += "generation_kwargs: null\nregexes_to_ignore: []\n"
    assert read_task_file(write(tmp_path, changed), "quiz").regexes_to_ignore == []


def test_a_missing_task_names_the_ones_there_are(tmp_path):
    with pytest.raises(UserError, match="does not exist; .* has: quiz"):
        read_task_file(write(tmp_path, GOOD), "quizz")
