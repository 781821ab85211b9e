"""A gate file that is wrong in any way is refused with its line; one that demands nothing never passes a run."""

import pytest

from pipeline_lib.config import PROJECT_ROOT
from pipeline_lib.gates.gate_file import read_gate_file
from pipeline_lib.stage import UserError

GOOD = """
description: two demands
promotes_to: {sft: dpo}
gates:
  - name: above chance
    group: sft
    metric: sft.python_choice.accuracy
    direction: higher
    threshold: 0.25
    use: low
  - {name: exact merge, metric: training.10_lora.exact, equals: true}
"""


def write(tmp_path, text):
    path = tmp_path / "gates.yaml"
    path.write_text(text, "utf-8")
    return path


def test_a_good_file_keeps_order_defaults_and_groups(tmp_path):
    file = read_gate_file(write(tmp_path, GOOD))
    assert [gate.name for gate in file.gates] == ["above chance", "exact merge"]
    assert (file.gates[0].use, file.gates[1].use, file.gates[1].group) == ("low", "value", "run")
    assert file.gates[0].demand() == "low > 0.25" and file.gates[1].demand() == "is true"


def test_one_group_can_be_chosen(tmp_path):
    file = read_gate_file(write(tmp_path, GOOD), only="sft")
    assert [gate.name for gate in file.gates] == ["above chance"] and file.promotes_to == {"sft": "dpo"}
    assert read_gate_file(write(tmp_path, GOOD), only="run").promotes_to == {}


def test_a_group_without_gates_is_an_error_and_not_a_pass(tmp_path):
    with pytest.raises(UserError, match="no gates of the group 'dpo'; it has: run, sft"):
        read_gate_file(write(tmp_path, GOOD), only="dpo")


GATE = "gates:\n  - {name: a, metric: b, direction: lower, threshold: 1%s}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GATE.replace("threshold", "treshold") % "", r"gates\.yaml:2: unknown key 'gates\.0\.treshold'.*'threshold'"),
        (GATE % ", gruop: x", "did you mean 'group'"),
        (GATE.replace("lower", "down") % "", r"gates\.yaml:2: .*'higher' or 'lower'"),
        (GATE.replace("1%s", "true"), "a truth value is no threshold"),
        (GATE.replace("1%s", "'1'"), "expected a number"),
        (GATE.replace("1%s", ".nan"), "finite number"),
        (GATE.replace("1%s", ".inf"), "finite number"),
        (GATE.replace("direction: lower, ", "") % "", "both `direction` and `threshold`"),
        (GATE % ", equals: true", "stands alone"),
        (GATE.replace("direction: lower, threshold: 1", "equals: 1") % "", "valid boolean"),
        (GATE % ", use: middle", "'value', 'low' or 'high'"),
        (GATE % "" + GATE.splitlines()[1] % "", "two gates are called 'a'"),
        (GATE % "" + "promotes_to: {x: y}\n", "the group 'x', which has no gate"),
        ("gates: []", "at least 1"),
        ("", "gates: this key is required"),
        ("gates:\n  - name: a\n    name: b\n", r"gates\.yaml:3: not valid YAML: the key 'name' is given twice"),
        ("gates: [", "not valid YAML"),
        ("- 3", "top level"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_file_and_cause(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        read_gate_file(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist"):
        read_gate_file(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    "path", sorted((PROJECT_ROOT / "configs" / "gates").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_gate_file_of_the_project_is_valid(path):
    assert read_gate_file(path).gates
