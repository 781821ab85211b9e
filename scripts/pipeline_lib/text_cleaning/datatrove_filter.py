"""The quality rules as datatrove's own filters judge them: the reference, slow, chosen by `quality_engine: datatrove`.

The same thresholds go to both engines, and a reason of datatrove's becomes the name of our rule. With
`datatrove_words: ours` both count the same words, and what is left to differ is in docs/cleaning.md; with `datatrove`
English needs the spacy package.
Trap: datatrove tells a reason and no number, so the receipts of this engine have no score; the score columns beside the
text are the compiled ones.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pipeline_lib.stage import UserError

from .c4 import count_sentences
from .words import split_words

if TYPE_CHECKING:
    from pipeline_lib.config.clean import CleanSettings

GROUPS = ("c4", "gopher_repetition", "gopher_quality", "fineweb")
RULE_OF_REASON = {
    "lorem_ipsum": "c4.lorem_ipsum",
    "curly_bracket": "c4.curly_bracket",
    "too_few_sentences": "c4.min_sentences",
    "dup_para_frac": "gopher_repetition.max_duplicate_paragraphs",
    "dup_para_char_frac": "gopher_repetition.max_duplicate_paragraph_characters",
    "dup_line_frac": "gopher_repetition.max_duplicate_lines",
    "dup_line_char_frac": "gopher_repetition.max_duplicate_line_characters",
    **{f"top_{n}_gram": f"gopher_repetition.max_top_{n}gram" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"gopher_repetition.max_duplicate_{n}gram" for n in range(5, 11)},
    "gopher_short_doc": "gopher_quality.min_words",
    "gopher_long_doc": "gopher_quality.max_words",
    "gopher_below_avg_threshold": "gopher_quality.min_word_length",
    "gopher_above_avg_threshold": "gopher_quality.max_word_length",
    "gopher_too_many_hashes": "gopher_quality.max_hash_ratio",
    "gopher_too_many_ellipsis": "gopher_quality.max_ellipsis_ratio",
    "gopher_too_many_bullets": "gopher_quality.max_bullet_lines",
    "gopher_too_many_end_ellipsis": "gopher_quality.max_ellipsis_lines",
    "gopher_below_alpha_threshold": "gopher_quality.min_alphabetic_words",
    "gopher_enough_stop_words": "gopher_quality.min_stop_words",
    "line_punct_ratio": "fineweb.min_terminal_lines",
    "short_line_ratio": "fineweb.max_short_lines",
    "char_dup_ratio": "fineweb.max_duplicate_characters",
    "list_ratio": "fineweb.max_newlines_per_word",
    "empty": "empty",
}

_NEVER = float("inf")


class DatatroveQualityFilter:
    """datatrove's filters for the chosen groups, with the thresholds of these settings."""

    def __init__(self, settings: "CleanSettings"):
        """Raises UserError when datatrove's English words are wanted without spacy, or a threshold has no equal."""
        words = _language(settings.datatrove_words)
        self._c4 = _c4_filter(settings, words) if "c4" in settings.quality_rules else None
        makers: dict[str, Callable[[Any, Any], Any]] = {
            "gopher_repetition": _repetition_filter,
            "gopher_quality": _quality_filter,
            "fineweb": _fineweb_filter,
        }
        self._filters = {
            name: makers[name](settings, words) for name in GROUPS if name in settings.quality_rules and name in makers
        }

    def rewrite(self, text: str) -> tuple[str, str | None]:
        """Return what C4's line rules leave of a text, and the rule that removes the document, if one does."""
        if self._c4 is None:
            return text, None
        document = _document(text)
        verdict = self._c4.filter(document)
        return (document.text, None) if verdict is True else (text, RULE_OF_REASON[verdict[1]])

    def broken_rule(self, text: str, cut: str | None = None) -> str | None:
        """Return the first rule of the other groups that a text breaks, None when it breaks none.

        cut: what C4 left of it, which FineWeb's rules read; none: C4 was not applied.
        """
        cut = text if cut is None else cut
        if not cut:
            return None  # the rule for empty documents has it
        for name, block in self._filters.items():
            verdict = block.filter(_document(cut if name == "fineweb" else text))
            if verdict is not True:
                return RULE_OF_REASON[verdict[1]]
        return None


def _document(text: str):
    from datatrove.data import Document

    return Document(text=text, id="")


def _language(words: str):
    """Return what datatrove takes as a language: "en", or our words in the dress of its splitters."""
    if words == "datatrove":
        if find_spec("spacy") is None:
            raise UserError(
                "clean.datatrove_words: datatrove splits English with spacy, which is not installed: pip install spacy,"
                " or set it to ours"
            )
        return "en"
    from datatrove.utils.word_tokenizers import WordTokenizer

    class OurWords(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return split_words(text)

        def sent_tokenize(self, text: str) -> list[str]:
            return [text] * (count_sentences(text) if text else 0)

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:  # datatrove splits into sentences by spans
            return [(0, 0)] * (count_sentences(text) if text else 0)

    return OurWords()


def _repetition_filter(settings: "CleanSettings", words):
    from datatrove.pipeline.filters import GopherRepetitionFilter

    group = settings.gopher_repetition
    top = ((n, getattr(group, f"max_top_{n}gram")) for n in (2, 3, 4))
    duplicate = ((n, getattr(group, f"max_duplicate_{n}gram")) for n in range(5, 11))
    return GopherRepetitionFilter(
        dup_line_frac=group.max_duplicate_lines,
        dup_para_frac=group.max_duplicate_paragraphs,
        dup_line_char_frac=group.max_duplicate_line_characters,
        dup_para_char_frac=group.max_duplicate_paragraph_characters,
        top_n_grams=tuple((n, limit) for n, limit in top if limit is not None),
        dup_n_grams=tuple((n, limit) for n, limit in duplicate if limit is not None),
        language=words,
    )


def _quality_filter(settings: "CleanSettings", words):
    from datatrove.pipeline.filters import GopherQualityFilter

    group = settings.gopher_quality
    if group.max_hash_ratio != group.max_ellipsis_ratio:
        raise UserError(
            "clean.gopher_quality: datatrove has one threshold for # signs and ellipses; give max_hash_ratio and"
            " max_ellipsis_ratio the same value, or set clean.quality_engine to compiled"
        )
    return GopherQualityFilter(
        min_doc_words=group.min_words,
        max_doc_words=group.max_words,
        min_avg_word_length=group.min_word_length,
        max_avg_word_length=group.max_word_length,
        max_symbol_word_ratio=group.max_hash_ratio,
        max_bullet_lines_ratio=group.max_bullet_lines,
        max_ellipsis_lines_ratio=group.max_ellipsis_lines,
        max_non_alpha_words_ratio=group.min_alphabetic_words,
        min_stop_words=group.min_stop_words,
        stop_words=group.stop_words,
        language=words,
    )


def _fineweb_filter(settings: "CleanSettings", words):
    from datatrove.pipeline.filters import FineWebQualityFilter

    group = settings.fineweb

    def limit(value: float | None) -> float:
        return _NEVER if value is None else value

    return FineWebQualityFilter(
        line_punct_thr=0.0 if group.min_terminal_lines is None else group.min_terminal_lines,
        short_line_thr=limit(group.max_short_lines),
        short_line_length=group.short_line_characters,
        char_duplicates_ratio=limit(group.max_duplicate_characters),
        new_line_ratio=limit(group.max_newlines_per_word),
        language=words,
    )


def _c4_filter(settings: "CleanSettings", words):
    from datatrove.pipeline.filters import C4QualityFilter

    group = settings.c4
    return C4QualityFilter(
        remove_citations=group.citations,
        filter_no_terminal_punct=group.terminal_punctuation,
        min_num_sentences=-1 if group.min_sentences is None else group.min_sentences,
        min_words_per_line=group.min_line_words,
        max_word_length=group.max_word_characters,
        filter_lorem_ipsum=group.lorem_ipsum,
        filter_javascript=group.javascript,
        filter_curly_bracket=group.curly_bracket,
        filter_policy=group.policy,
        language=words,
    )
