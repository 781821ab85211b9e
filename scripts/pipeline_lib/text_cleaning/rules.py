"""From scores to verdicts: a rule is a column, a side and a threshold, so another threshold never reads a text again.

The first rule that a document breaks, in the order of `active_rules`, is the one named on its receipt. Within a group
the order is datatrove's, so that its reasons and ours can be compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from .toxicity_backend import toxicity_backend

if TYPE_CHECKING:
    from pipeline_lib.config.clean import (
        C4Settings,
        CleanSettings,
        FineWebSettings,
        GopherQualitySettings,
        GopherRepetitionSettings,
        UrlSettings,
    )

KEPT = -1


@dataclass(frozen=True)
class Rule:
    """A document is removed when its value in `column` is beyond `threshold` on this side; equal values stay."""

    name: str
    column: str
    removes: Literal["below", "above"]
    threshold: float
    for_everyone: bool = False
    """Whether it holds for the exempt sources too."""

    def broken_by(self, scores: np.ndarray) -> np.ndarray:
        """Return bool[documents]."""
        return scores < self.threshold if self.removes == "below" else scores > self.threshold


def active_rules(settings: "CleanSettings") -> list[Rule]:
    """Return the rules that these settings switch on, in the order in which they are named on receipts."""
    rules = [Rule("invalid_utf8", "invalid_utf8", "above", 0, for_everyone=True)]
    if settings.max_document_bytes is not None:
        rules.append(Rule("max_document_bytes", "bytes", "above", settings.max_document_bytes, for_everyone=True))
    rules += _url(settings.url) if "url" in settings.quality_rules else []
    rules += _c4(settings.c4) if "c4" in settings.quality_rules else []  # what c4 emptied, c4 removed
    rules.append(Rule("empty", "characters", "below", 1, for_everyone=True))
    if settings.language.keep:
        rules.append(Rule("language.min_score", "kept_language_score", "below", settings.language.min_score))
    if "gopher_repetition" in settings.quality_rules:
        rules += _gopher_repetition(settings.gopher_repetition)
    if "gopher_quality" in settings.quality_rules:
        rules += _gopher_quality(settings.gopher_quality)
    if "fineweb" in settings.quality_rules:
        rules += _fineweb(settings.fineweb)
    model = settings.quality_model
    if model.examples and model.min_score is not None:
        rules.append(Rule("quality_model.min_score", "quality_model", "below", model.min_score))
    backend = toxicity_backend(settings.toxicity)
    if backend == "detoxify":
        rules.append(Rule("toxicity.max_score", "toxicity", "above", settings.toxicity.max_score))
    elif backend == "words":
        rules.append(Rule("toxicity.max_word_share", "profane_words", "above", settings.toxicity.max_word_share))
    if settings.contamination.enabled and settings.contamination.action == "remove":
        limit = settings.contamination.max_matches
        rules.append(Rule("contamination", "contamination", "above", limit, for_everyone=True))
    return rules


def _rules(group: str, thresholds: dict[str, float | None]) -> list[Rule]:
    """Return the rule `min_x` or `max_x` on column x for each threshold that is not None."""
    sides = {"min_": "below", "max_": "above"}
    return [
        Rule(f"{group}.{name}", name[4:], sides[name[:4]], threshold)
        for name, threshold in thresholds.items()
        if threshold is not None
    ]


def _gopher_repetition(group: "GopherRepetitionSettings") -> list[Rule]:
    thresholds = {
        "max_duplicate_paragraphs": group.max_duplicate_paragraphs,
        "max_duplicate_paragraph_characters": group.max_duplicate_paragraph_characters,
        "max_duplicate_lines": group.max_duplicate_lines,
        "max_duplicate_line_characters": group.max_duplicate_line_characters,
        "max_top_2gram": group.max_top_2gram,
        "max_top_3gram": group.max_top_3gram,
        "max_top_4gram": group.max_top_4gram,
        "max_duplicate_5gram": group.max_duplicate_5gram,
        "max_duplicate_6gram": group.max_duplicate_6gram,
        "max_duplicate_7gram": group.max_duplicate_7gram,
        "max_duplicate_8gram": group.max_duplicate_8gram,
        "max_duplicate_9gram": group.max_duplicate_9gram,
        "max_duplicate_10gram": group.max_duplicate_10gram,
    }
    return _rules("gopher_repetition", thresholds)


def _gopher_quality(group: "GopherQualitySettings") -> list[Rule]:
    thresholds = {
        "min_words": group.min_words,
        "max_words": group.max_words,
        "min_word_length": group.min_word_length,
        "max_word_length": group.max_word_length,
        "max_hash_ratio": group.max_hash_ratio,
        "max_ellipsis_ratio": group.max_ellipsis_ratio,
        "max_bullet_lines": group.max_bullet_lines,
        "max_ellipsis_lines": group.max_ellipsis_lines,
        "min_alphabetic_words": group.min_alphabetic_words,
        "min_stop_words": group.min_stop_words,
    }
    return _rules("gopher_quality", thresholds)


def _fineweb(group: "FineWebSettings") -> list[Rule]:
    thresholds = {
        "min_terminal_lines": group.min_terminal_lines,
        "max_short_lines": group.max_short_lines,
        "max_duplicate_characters": group.max_duplicate_characters,
        "max_newlines_per_word": group.max_newlines_per_word,
    }
    return _rules("fineweb", thresholds)


def _c4(group: "C4Settings") -> list[Rule]:
    rules = []
    if group.lorem_ipsum:
        rules.append(Rule("c4.lorem_ipsum", "lorem_ipsum", "above", 0))
    if group.curly_bracket:
        rules.append(Rule("c4.curly_bracket", "curly_bracket", "above", 0))
    return rules + _rules("c4", {"min_sentences": group.min_sentences})


def _url(group: "UrlSettings") -> list[Rule]:
    rules = [
        Rule("url.domains", "blocked_domain", "above", 0),
        Rule("url.urls", "blocked_url", "above", 0),
        Rule("url.banned_words", "banned_url_words", "above", 0),
    ]
    if group.max_soft_banned_words is not None:
        limit = group.max_soft_banned_words
        rules.append(Rule("url.max_soft_banned_words", "soft_banned_url_words", "above", limit))
    return [*rules, Rule("url.banned_subwords", "banned_url_subwords", "above", 0)]


def first_broken(
    columns: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    exempt: np.ndarray | None = None,
    judged: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """Return, per document, the index in `rules` of the first rule it breaks, or KEPT: int32[documents].

    exempt: bool[documents], those that only the rules for everyone judge. judged: {rule name: bool[documents], who
    breaks it} of the rules that somebody else has judged.
    """
    verdicts = np.full(len(next(iter(columns.values()))), KEPT, np.int32)
    for index, rule in enumerate(rules):
        broken = judged[rule.name] if judged and rule.name in judged else rule.broken_by(columns[rule.column])
        broken = broken & (verdicts == KEPT)
        if exempt is not None and not rule.for_everyone:
            broken &= ~exempt
        verdicts[broken] = index
    return verdicts
