"""Thresholds are applied to columns: each by its own setting, none when it is null."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib.config.clean import CleanSettings
from pipeline_lib.text_cleaning.c4 import C4_COLUMNS
from pipeline_lib.text_cleaning.document_scores import SCORE_COLUMNS
from pipeline_lib.text_cleaning.language import LANGUAGE_COLUMNS
from pipeline_lib.text_cleaning.rules import KEPT, Rule, active_rules, first_broken
from pipeline_lib.text_cleaning.url_lists import URL_COLUMNS

GROUPS = ("c4", "gopher_repetition", "gopher_quality", "fineweb")
LINE_SETTINGS = ("c4.min_line_words", "c4.max_word_characters")  # judge single lines, before there is a score
ALL_GROUPS = CleanSettings(quality_rules=list(GROUPS))


def test_every_threshold_setting_is_a_rule_on_an_existing_column():
    rules = {rule.name: rule for rule in active_rules(ALL_GROUPS)}
    columns = {*SCORE_COLUMNS, *C4_COLUMNS, *LANGUAGE_COLUMNS, *URL_COLUMNS, "contamination", "invalid_utf8", "bytes"}
    assert {rule.column for rule in rules.values()} <= columns
    for group in GROUPS:
        for field in type(getattr(ALL_GROUPS, group)).model_fields:
            name = f"{group}.{field}"
            if field.startswith(("min_", "max_")) and name not in LINE_SETTINGS:
                assert rules[name].threshold == getattr(getattr(ALL_GROUPS, group), field)
                assert rules[name].removes == ("below" if field.startswith("min_") else "above")


@pytest.mark.parametrize("group", ["gopher_quality", "gopher_repetition", "fineweb", "c4"])
def test_null_switches_a_rule_off_and_a_missing_group_all_of_its_rules(group):
    named = [rule.name for rule in active_rules(ALL_GROUPS) if rule.name.startswith(group)]
    threshold = next(name for name in named if ".min_" in name or ".max_" in name)
    without = CleanSettings(quality_rules=[group], **{group: {threshold.split(".")[1]: None}})
    assert [rule.name for rule in active_rules(without) if rule.name.startswith(group)] == [
        n for n in named if n != threshold
    ]
    others = [other for other in GROUPS if other != group]
    assert not [rule for rule in active_rules(CleanSettings(quality_rules=others)) if rule.name.startswith(group)]


def test_a_score_equal_to_the_threshold_stays():
    scores = np.array([0.1, 0.2, 0.3])
    assert Rule("r", "x", "above", 0.2).broken_by(scores).tolist() == [False, False, True]
    assert Rule("r", "x", "below", 0.2).broken_by(scores).tolist() == [True, False, False]


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=20))
def test_the_first_broken_rule_is_named(rows):
    rules = [Rule("one", "a", "above", 0.5), Rule("two", "b", "below", 0.5), Rule("three", "c", "above", 0.9)]
    values = np.array(rows)
    columns = {name: values[:, i] for i, name in enumerate("abc")}
    expected = [0 if a > 0.5 else 1 if b < 0.5 else 2 if c > 0.9 else KEPT for a, b, c in rows]
    assert first_broken(columns, rules).tolist() == expected
