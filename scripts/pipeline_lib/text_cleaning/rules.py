"""From scores to verdicts: a rule is a column, a side and a threshold, so another threshold never reads a text again.

A setting `min_x` or `max_x` of a group is the rule on column `x`. The first rule that a document breaks, in the order
below, is the one named on its receipt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from pipeline_lib.config.clean import CleanSettings

GROUP_ORDER = ("gopher_repetition", "gopher_quality", "c4", "fineweb")
LINE_SETTINGS = ("c4.min_line_words", "c4.max_word_characters")
"""Settings that look like rules and apply to single lines, before there is a score."""

KEPT = -1


@dataclass(frozen=True)
class Rule:
    """A document is removed when its value in `column` is beyond `threshold` on this side; equal values stay."""

    name: str
    column: str
    removes: Literal["below", "above"]
    threshold: float

    def broken_by(self, scores: np.ndarray) -> np.ndarray:
        """Return bool[documents]."""
        return scores < self.threshold if self.removes == "below" else scores > self.threshold


def active_rules(settings: "CleanSettings") -> list[Rule]:
    """Return the rules that these settings switch on, in the order in which they are named."""
    rules = [Rule("empty", "characters", "below", 1)]
    if settings.language.keep:
        rules.append(Rule("language.min_score", "kept_language_score", "below", settings.language.min_score))
    for group in GROUP_ORDER:
        if group in settings.quality_rules:
            rules += _rules_of_group(group, settings)
    if settings.contamination.enabled:
        rules.append(Rule("contamination", "contamination", "above", settings.contamination.max_matches))
    return rules


def _rules_of_group(group: str, settings: "CleanSettings") -> list[Rule]:
    thresholds = getattr(settings, group)
    rules = []
    for field in type(thresholds).model_fields:
        name = f"{group}.{field}"
        side = {"min_": "below", "max_": "above"}.get(field[:4])
        value = getattr(thresholds, field)
        if side and value is not None and name not in LINE_SETTINGS:
            rules.append(Rule(name, field[4:], side, value))
    if group == "c4":
        for flag, wanted in (("lorem_ipsum", thresholds.lorem_ipsum), ("curly_bracket", thresholds.curly_bracket)):
            if wanted:
                rules.append(Rule(f"c4.{flag}", flag, "above", 0))
    return rules


def first_broken(columns: Mapping[str, np.ndarray], rules: Sequence[Rule]) -> np.ndarray:
    """Return, per document, the index in `rules` of the first rule it breaks, or KEPT: int32[documents]."""
    verdicts = np.full(len(next(iter(columns.values()))), KEPT, np.int32)
    for index, rule in enumerate(rules):
        verdicts[(verdicts == KEPT) & rule.broken_by(columns[rule.column])] = index
    return verdicts
