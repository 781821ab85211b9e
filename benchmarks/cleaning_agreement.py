"""Agreement with datatrove, rule by rule: documents of which both say the same about a rule, with the same words.

`python benchmarks/cleaning_agreement.py FOLDER...` reads *.jsonl and *.jsonl.gz with a `text` field below the folders;
without one it reads the documentation of the installed packages, as cleaning_quality.py does. A rule is compared as
each engine names it: the first rule of its group that a document breaks. With spacy installed datatrove's own English
words are compared too, which is another splitter and therefore another count.
"""

import gzip
import json
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa

from cleaning_quality import real_texts
from pipeline_lib.config.clean import CleanSettings
from pipeline_lib.text_cleaning.c4 import apply_c4_batch
from pipeline_lib.text_cleaning.datatrove_filter import DatatroveQualityFilter
from pipeline_lib.text_cleaning.document_scores import score_documents
from pipeline_lib.text_cleaning.normalise import normalise_batch
from pipeline_lib.text_cleaning.rules import KEPT, active_rules, first_broken

GROUPS = ("gopher_repetition", "gopher_quality", "fineweb", "c4")
MOST_CHARACTERS = 30_000
PLAIN = {"language": {"keep": []}, "contamination": {"enabled": False}}


def texts_below(folders: list[str]) -> list[str]:
    """Return the `text` of every record of the JSON-lines files below these folders."""
    found = []
    for file in sorted(path for folder in folders for path in Path(folder).rglob("*.json*") if path.is_file()):
        raw = file.read_bytes()
        for line in (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode().split("\n"):
            record = json.loads(line) if line.strip() else {}
            if isinstance(record.get("text"), str):
                found.append(record["text"][:MOST_CHARACTERS])
    return found


def our_rules(texts: pa.Array, group: str) -> list[str | None]:
    """Return the first rule of the group that each text breaks."""
    settings = CleanSettings(**PLAIN, quality_rules=[group])
    if group == "c4":
        _, scores = apply_c4_batch(texts, settings.c4, np.zeros(len(texts), np.bool_))
        columns = {name: scores[:, k] for k, name in enumerate(("sentences", "lorem_ipsum", "curly_bracket"))}
    else:
        short = settings.fineweb.short_line_characters
        columns = score_documents(texts, settings.gopher_quality.stop_words, short)
    rules = [rule for rule in active_rules(settings) if rule.name.startswith(group)]
    return [None if verdict == KEPT else rules[verdict].name for verdict in first_broken(columns, rules).tolist()]


def their_rules(texts: list[str], group: str, words: str) -> list[str | None]:
    """Return the same as datatrove says it."""
    reference = DatatroveQualityFilter(CleanSettings(**PLAIN, quality_rules=[group], datatrove_words=words))
    return [reference.rewrite(text)[1] if group == "c4" else reference.broken_rule(text) for text in texts]


def main() -> None:
    """Print one line for each rule."""
    given = texts_below(sys.argv[1:]) or real_texts()
    array, _ = normalise_batch(pa.array(given, pa.large_string()))
    texts = array.to_pylist()
    array = pa.array([text for text in texts if any(map(str.isalnum, text))], pa.large_string())
    texts = array.to_pylist()
    splitters = ["ours", *(["datatrove"] if find_spec("spacy") else [])]
    for group in GROUPS:
        mine = our_rules(array, group)
        theirs = {words: their_rules(texts, group, words) for words in splitters}
        names = [
            rule.name for rule in active_rules(CleanSettings(quality_rules=[group])) if rule.name.startswith(group)
        ]
        counts = Counter(mine)
        for name in [*names, None]:
            label = name or f"{group} keeps or removes"
            same = {
                words: sum((a == name) == (b == name) for a, b in zip(mine, other, strict=True)) / len(texts)
                for words, other in theirs.items()
            }
            line = {
                "claim": f"agreement: {label}",
                "ours": f"{counts[name] if name else len(texts) - counts[None]} of {len(texts)} removed",
                "peer": "datatrove",
                "ratio": "",
                "quality": ", ".join(f"{words} words {share:.3%}" for words, share in same.items()),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
