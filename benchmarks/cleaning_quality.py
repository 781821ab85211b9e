"""Quality scores: documents per second on one core against datatrove's filters, with the agreement.

The corpus is text that every machine has: the long descriptions and licences of the installed packages, cut at 8 KB.
datatrove runs twice: at its best, with our words through its own interface for word splitters, which also makes
verdicts comparable one by one; and as documented, with spaCy's words, on every sixth document. Ours computes every
score of the three filters in one pass and applies the thresholds. Runs are interleaved; the ratio is one of medians.
"""

import json
import statistics
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from datatrove.data import Document
from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.utils.typeshelper import Languages
from datatrove.utils.word_tokenizers import WordTokenizer

from pipeline_lib.config.clean import CleanSettings
from pipeline_lib.text_cleaning.document_scores import score_documents
from pipeline_lib.text_cleaning.normalise import normalise
from pipeline_lib.text_cleaning.rules import KEPT, active_rules, first_broken
from pipeline_lib.text_cleaning.words import split_words

RUNS = 5
LONGEST = 8_000
SHORTEST = 500
DOCUMENTS = 600
EVERY = 6
"""One in so many documents is read with spaCy's words."""


class OurWords(WordTokenizer):
    """Our words in datatrove's clothes."""

    def word_tokenize(self, text: str) -> list[str]:
        return split_words(text)

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError("no sentence is needed")

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError("no sentence is needed")


def real_texts() -> list[str]:
    """Return DOCUMENTS texts of 500 to 8,000 characters from the installed packages."""
    folder = Path(sysconfig.get_path("purelib"))
    files = sorted(
        {*folder.glob("*.dist-info/METADATA"), *folder.glob("*.dist-info/**/LICENSE*"), *folder.rglob("*.rst")}
    )
    texts = []
    for file in files:
        if not file.is_file():
            continue
        whole = normalise(file.read_text("utf-8", errors="replace"))
        texts += [whole[at : at + LONGEST].strip("\n") for at in range(0, len(whole), LONGEST)]
    return [normalise(text) for text in texts if len(text) >= SHORTEST][:DOCUMENTS]


def our_verdicts(texts: list[str]) -> dict[str, list[bool]]:
    """Return {group: kept?} after one pass over all texts."""
    settings = CleanSettings(language={"keep": []}, contamination={"enabled": False})
    columns = score_documents(
        pa.array(texts, pa.large_string()), settings.gopher_quality.stop_words, settings.fineweb.short_line_characters
    )
    verdicts = {}
    for group in settings.quality_rules:
        rules = [rule for rule in active_rules(settings) if rule.name.startswith(group)]
        verdicts[group] = (first_broken(columns, rules) == KEPT).tolist()
    return verdicts


def timed(function: Callable[[], object]) -> tuple[float, object]:
    """Return (seconds, result)."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def their_verdicts(filter_block, texts: list[str]) -> list[bool]:
    return [filter_block.filter(Document(text=text, id="")) is True for text in texts]


def row(claim: str, seconds: list[float], peer_seconds: list[float], texts: list[str], quality: str) -> None:
    """Print one line for RESULTS.md."""
    ours, peer = statistics.median(seconds), statistics.median(peer_seconds)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    line = {
        "claim": claim,
        "ours": f"{len(texts) / ours:,.0f} documents/s ({megabytes / ours:.1f} MB/s)",
        "peer": f"datatrove {len(texts) / peer:,.0f} documents/s ({megabytes / peer:.1f} MB/s)",
        "ratio": round(peer / ours, 1),
        "quality": quality,
    }
    print(json.dumps(line), flush=True)


def compare_scores(claim: str, texts: list[str], words: WordTokenizer | str) -> None:
    """Time the three groups together, datatrove with these words (splitter or language), and check every verdict."""
    filters = {
        "gopher_quality": GopherQualityFilter(language=words),
        "gopher_repetition": GopherRepetitionFilter(language=words),
        "fineweb": FineWebQualityFilter(language=words),
    }
    our_verdicts(texts[:1])  # compiled once per machine, not measured
    for block in filters.values():
        their_verdicts(block, texts[:1])  # loads the splitter
    ours: list[float] = []
    theirs: dict[str, list[float]] = {group: [] for group in filters}
    for _ in range(RUNS):
        seconds, mine = timed(lambda: our_verdicts(texts))
        ours.append(seconds)
        agreement = {}
        for group, block in filters.items():
            seconds, verdicts = timed(lambda block=block: their_verdicts(block, texts))
            theirs[group].append(seconds)
            agreement[group] = sum(a == b for a, b in zip(mine[group], verdicts, strict=True)) / len(texts)
    together = [sum(times) for times in zip(*theirs.values(), strict=True)]
    details = ", ".join(
        f"{group} {agreement[group]:.2%} at {len(texts) / statistics.median(seconds):,.0f} documents/s alone"
        for group, seconds in theirs.items()
    )
    row(claim, ours, together, texts, f"equal verdicts with datatrove's {details}")


if __name__ == "__main__":
    documents = real_texts()
    one_pass = "all Gopher and FineWeb scores in one pass, against"
    compare_scores(f"{one_pass} datatrove at its best (our words)", documents, OurWords())
    compare_scores(f"{one_pass} datatrove as documented (spaCy's words)", documents[::EVERY], Languages.english)
