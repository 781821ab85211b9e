"""Personal data: megabytes per second against datatrove's PIIFormatter, and how right the finds are.

Speed is measured on the genuine web text beside the checkout (../shared/data) or, where that is missing, on the long
descriptions of the installed packages. datatrove replaces e-mail and public IPv4 addresses, ours nine kinds. Precision
and recall are those of spans, begin and end, on the labelled sentences of tests/fixtures/personal_data.txt: a find that
is a character too long is false, and its label missed. In the enterprise_pii passages, whose labels speak of names and
business figures, every telephone number and mailbox is looked for by a looser expression instead.
"""

import gzip
import json
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from datatrove.pipeline.formatters import PIIFormatter

from pipeline_lib.text_cleaning.arrow_text import text_buffers
from pipeline_lib.text_cleaning.normalise import normalise
from pipeline_lib.text_cleaning.personal_data import PersonalData
from pipeline_lib.text_cleaning.personal_data_kinds import KINDS

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
RUNS = 5
LONGEST = 8_000
WEB_TEXT = ("pretrain_text/c4_demo", "webdocs/us_gov_posts", "webdocs/peps")
LOOSE = re.compile(r"[\w.+-]+@\w[\w.-]*\.[A-Za-z]{2,}|\+?\(?\d{3}\)?[ .-]?\d{3}[ .-]\d{4}")


def web_texts() -> list[str]:
    """Return documents of at most LONGEST characters."""
    if SHARED.is_dir():
        texts = []
        for name in WEB_TEXT:
            with gzip.open(SHARED / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
                texts += [normalise(json.loads(line)["text"])[:LONGEST] for line in lines]
        return texts
    from cleaning_quality import real_texts

    return real_texts()


def finds_of(cleaner: PersonalData, texts: list[str]) -> list[set[tuple[str, int, int]]]:
    """Return (kind, first character, end) of the finds in each text."""
    data, offsets = text_buffers(pa.array(texts, pa.large_string()))
    found: list[set[tuple[str, int, int]]] = [set() for _ in texts]
    for find in cleaner.find(data, offsets):
        raw = texts[find.document].encode()
        places = [len(raw[: place - offsets[find.document]].decode()) for place in (find.first, find.last)]
        found[find.document].add((cleaner.kinds[find.kind], *places))
    return found


def labelled_quality(cleaner: PersonalData) -> str:
    """Precision and recall over all kinds and per kind, in words."""
    sys.path.insert(0, str(ROOT / "tests" / "text_cleaning"))
    from labelled_personal_data import labelled_texts

    labelled = labelled_texts()
    right, found, wanted = Counter(), Counter(), Counter()
    for finds, (_, labels) in zip(finds_of(cleaner, [text for text, _ in labelled]), labelled, strict=True):
        right.update(kind for kind, *_ in finds & set(labels))
        found.update(kind for kind, *_ in finds)
        wanted.update(kind for kind, *_ in labels)
    kinds = ", ".join(f"{kind} {right[kind]}/{wanted[kind]}" for kind in KINDS)
    return (
        f"{len(labelled)} labelled sentences: precision {right.total() / found.total():.3f}"
        f" ({right.total()}/{found.total()}), recall {right.total() / wanted.total():.3f} ({kinds})"
    )


def enterprise_quality(cleaner: PersonalData) -> str:
    """What is found in the enterprise_pii passages, and what a looser expression finds beyond it, in words."""
    with gzip.open(SHARED / "pii" / "enterprise_pii_classification.part1.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    texts = [row["query"].split("'''")[1] for row in rows]
    finds = finds_of(cleaner, texts)
    loose = [len(LOOSE.findall(text)) for text in texts]
    left = sum(len(LOOSE.findall(cleaner.replace(text)[0])) for text in texts)
    kinds = Counter(kind for found in finds for kind, *_ in found)
    sensitive = sum(bool(found) and row["gold"] == 1 for found, row in zip(finds, rows, strict=True))
    return (
        f"enterprise_pii, {len(rows)} passages: {sum(kinds.values())} finds ({dict(kinds)}) in"
        f" {sum(map(bool, finds))} passages, {sensitive} of them labelled sensitive (they mean names and figures);"
        f" a looser expression has {sum(loose)} candidates, {left} of them left"
    )


def timed(function: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    """Print one line for RESULTS.md."""
    texts = web_texts()
    array = pa.array(texts, pa.large_string())
    ours_block, theirs_block = PersonalData(KINDS), PIIFormatter()
    ours_block.replace_batch(array)  # compiled once per machine, not measured
    ours, theirs = [], []
    for _ in range(RUNS):
        ours.append(timed(lambda: ours_block.replace_batch(array)))
        theirs.append(timed(lambda: [theirs_block.format(text) for text in texts]))
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    quality = [f"{len(KINDS)} validated kinds against 2", labelled_quality(ours_block)]
    if SHARED.is_dir():
        quality.append(enterprise_quality(ours_block))
    line = {
        "claim": "personal data found and replaced, one core",
        "ours": f"{megabytes / statistics.median(ours):.0f} MB/s",
        "peer": f"datatrove PIIFormatter {megabytes / statistics.median(theirs):.1f} MB/s",
        "ratio": round(statistics.median(theirs) / statistics.median(ours), 1),
        "quality": "; ".join(quality),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
