"""Agreement with datatrove, rule by rule: documents of which both say the same about a rule, with the same words.

`python benchmarks/cleaning_agreement.py FOLDER...` reads what stage 01 would read of the folders: JSON lines, Parquet
and CSV with a `text` field, running text, pages and web archives through main-text extraction. Without a folder it
takes the genuine text beside the checkout (../shared/data) or, where that is missing, the documentation of installed
packages, as cleaning_quality.py does. A rule is compared as each engine names it: the first rule of its group that a
document breaks. With spacy installed every third document is compared with
datatrove's own English words and sentences too, which is another splitter and therefore another count. C4 rewrites more
than it removes, so its texts are compared as well. The last line compares the whole recipe, in FineWeb's order.
"""

import json
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa

from cleaning_quality import real_texts
from pipeline_lib.config.clean import CleanSettings
from pipeline_lib.config.sources import SourceSettings
from pipeline_lib.sources.base import Dropped
from pipeline_lib.sources.local import LocalSource
from pipeline_lib.text_cleaning.c4 import apply_c4_batch
from pipeline_lib.text_cleaning.data_cleaner import DataCleaner
from pipeline_lib.text_cleaning.datatrove_filter import DatatroveQualityFilter
from pipeline_lib.text_cleaning.document_scores import score_documents
from pipeline_lib.text_cleaning.normalise import normalise_batch
from pipeline_lib.text_cleaning.rules import KEPT, active_rules, first_broken

GROUPS = ("gopher_repetition", "gopher_quality", "fineweb", "c4")
MOST_CHARACTERS = 30_000
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
GENUINE = (
    "pretrain_text",
    "webdocs",
    "warc/dolma_sample-0000.warc.gz",
    "html_extraction/html",
    "quality/dclm_agreement_data.jsonl.gz",
    "books",
)
EVERY = {"ours": 1, "datatrove": 3}
PLAIN = {"language": {"keep": []}, "contamination": {"enabled": False}}
RECIPE = {"c4": {"terminal_punctuation": False}}


def texts_below(folders: list[str]) -> list[str]:
    """Return the text of every document below these folders, at most its first MOST_CHARACTERS."""
    source = LocalSource(SourceSettings(name="genuine", kind="text", type="local", paths=folders, license="mixed"))
    records = (record for unit in source.units() for record in source.read(unit))
    return [record["text"][:MOST_CHARACTERS] for record in records if not isinstance(record, Dropped)]


def our_rules(texts: pa.Array, group: str) -> tuple[list[str | None], list[str]]:
    """Return the first rule of the group that each text breaks, and what is left of the text."""
    settings = CleanSettings(**PLAIN, quality_rules=[group])
    left = texts
    if group == "c4":
        left, scores = apply_c4_batch(texts, settings.c4, np.zeros(len(texts), np.bool_))
        columns = {name: scores[:, k] for k, name in enumerate(("sentences", "lorem_ipsum", "curly_bracket"))}
    else:
        short = settings.fineweb.short_line_characters
        columns = score_documents(texts, settings.gopher_quality.stop_words, short)
    rules = [rule for rule in active_rules(settings) if rule.name.startswith(group)]
    broken = [None if verdict == KEPT else rules[verdict].name for verdict in first_broken(columns, rules).tolist()]
    return broken, left.to_pylist()


def their_rules(texts: list[str], group: str, words: str) -> tuple[list[str | None], list[str]]:
    """Return the same as datatrove says it."""
    reference = DatatroveQualityFilter(CleanSettings(**PLAIN, quality_rules=[group], datatrove_words=words))
    if group == "c4":
        left, broken = zip(*(reference.rewrite(text) for text in texts), strict=True)
        return list(broken), list(left)
    return [reference.broken_rule(text) for text in texts], texts


def our_recipe(texts: list[str]) -> list[str | None]:
    """Return what FineWeb's four groups together leave of each text, None of those that go."""
    settings = CleanSettings(**PLAIN, **RECIPE, quality_rules=[*GROUPS], personal_data={"kinds": []})
    return [None if page.removed_by else page.text for page in DataCleaner(settings).clean(texts)]


def their_recipe(texts: list[str], words: str) -> list[str | None]:
    """Return the same of datatrove's filters in the order of its examples/fineweb.py."""
    gopher, c4, fineweb = (
        DatatroveQualityFilter(CleanSettings(**PLAIN, **RECIPE, quality_rules=groups, datatrove_words=words))
        for groups in (["gopher_repetition", "gopher_quality"], ["c4"], ["fineweb"])
    )
    left = []
    for text in texts:
        cut, broken = c4.rewrite(text)
        left.append(None if broken or gopher.broken_rule(text) or fineweb.broken_rule(cut) else cut)
    return left


def main() -> None:
    """Print one line for each rule."""
    folders = sys.argv[1:] or [str(SHARED / name) for name in GENUINE if SHARED.is_dir()]
    given = texts_below(folders) if folders else real_texts()
    array, _ = normalise_batch(pa.array(given, pa.large_string()))
    texts = [text for text in array.to_pylist() if any(map(str.isalnum, text))]
    array = pa.array(texts, pa.large_string())
    splitters = ["ours", *(["datatrove"] if find_spec("spacy") else [])]
    for group in GROUPS:
        mine, left = our_rules(array, group)
        theirs = {words: their_rules(texts[:: EVERY[words]], group, words) for words in splitters}
        names = [rule.name for rule in active_rules(CleanSettings(quality_rules=[group]))]
        counts = Counter(mine)
        for name in [*(name for name in names if name.startswith(group)), None]:
            removed = counts[name] if name else len(texts) - counts[None]
            same = {
                words: [(a == name) == (b == name) for a, b in zip(mine[:: EVERY[words]], broken, strict=True)]
                for words, (broken, _) in theirs.items()
            }
            _print(name or f"{group} keeps or removes", f"{removed} of {len(texts)} removed", same)
        if group == "c4":
            rewritten = {
                words: [
                    ours == other
                    for ours, other, verdict, broken in zip(
                        left[:: EVERY[words]], lines, mine[:: EVERY[words]], verdicts, strict=True
                    )
                    if verdict is None and broken is None
                ]
                for words, (verdicts, lines) in theirs.items()
            }
            changed = sum(before != after for before, after in zip(texts, left, strict=True))
            _print("c4 leaves the same text of what both keep", f"{changed} of {len(texts)} rewritten", rewritten)
    kept = our_recipe(texts)
    same = {}
    for words in splitters:
        theirs = their_recipe(texts[:: EVERY[words]], words)
        same[words] = [a == b for a, b in zip(kept[:: EVERY[words]], theirs, strict=True)]
    _print("FineWeb's recipe leaves the same text or none", f"{kept.count(None)} of {len(texts)} removed", same)


def _print(claim: str, ours: str, same: dict[str, list[bool]]) -> None:
    shares = [f"{words} words {sum(equal) / len(equal):.3%} of {len(equal)}" for words, equal in same.items()]
    line = {
        "claim": f"agreement: {claim}",
        "ours": ours,
        "peer": "datatrove",
        "ratio": "",
        "quality": ", ".join(shares),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
