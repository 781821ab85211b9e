"""Task files: lm-eval's keys without the ones that run code, and errors that point at the line."""

import pytest

from pipeline_lib.config import PROJECT_ROOT
from pipeline_lib.config.task_files import read_task_file
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


def write(tmp_path, text, name="quiz"):
    (tmp_path / f"{name}.yaml").write_text(text, "utf-8")
    return tmp_path


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_every_task_file_of_the_project_is_valid(name):
    task = read_task_file(FOLDER, name)
    for chat in (False, True):
        config = task.lm_eval_config(chat)
        assert {metric["metric"] for metric in config["metric_list"]} == set(task.metrics.values())


def test_the_chat_keys_replace_the_plain_ones_only_for_chat_models(tmp_path):
    task = read_task_file(write(tmp_path, GOOD + "chat: {doc_to_text: '{{question}}?'}\n"), "quiz")
    assert task.lm_eval_config(chat=False)["doc_to_text"] == "question"
    assert task.lm_eval_config(chat=True)["doc_to_text"] == "{{question}}?"


def test_bits_per_byte_is_declared_lower_is_better_and_accuracy_higher():
    directions = {
        metric["metric"]: metric["higher_is_better"]
        for name in ("heldout_docs", "domain", "python_choice", "arithmetic")
        for metric in read_task_file(FOLDER, name).lm_eval_config(False)["metric_list"]
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
    ],
)
def test_a_wrong_task_file_is_one_line_that_names_file_and_cause(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_task_file(write(tmp_path, text), "quiz")
    assert "quiz.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_task_names_the_ones_there_are(tmp_path):
    with pytest.raises(UserError, match="does not exist; .* has: quiz"):
        read_task_file(write(tmp_path, GOOD), "quizz")
