"""The configuration, the tables of handlers and the documentation name the same formats."""

from pathlib import Path
from typing import get_args

from dataset_formatters import CONVERSATION_HANDLERS, PREFERENCE_HANDLERS
from pipeline_lib.config.sources import ChatFormat, PairFormat

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "add_a_formatter.md"


def test_every_format_of_the_configuration_has_a_handler_and_the_other_way_round():
    assert set(get_args(ChatFormat)) == set(CONVERSATION_HANDLERS)
    assert set(get_args(PairFormat)) == set(PREFERENCE_HANDLERS)


def test_every_format_is_documented_and_no_other():
    lines = DOCUMENTATION.read_text("utf-8").split("## Which format")[0].splitlines()
    named = [line.split("`")[1] for line in lines if line.startswith("| `")]
    assert sorted(named) == sorted([*CONVERSATION_HANDLERS, *PREFERENCE_HANDLERS])
