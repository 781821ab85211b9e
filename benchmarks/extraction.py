"""Main text of web pages: F1 on the gold pages of the article extraction benchmark, and pages per second.

The measure is that benchmark's: a text is its multiset of word 4-grams (runs of letters and digits, as they stand);
precision and recall per page, the mean of each over the pages, and the F1 of the means. Ours is what stage 01 does to
an .html file or a WARC record; the peers are trafilatura's other settings and every visible word of the page.
Needs ../shared/data; prints nothing without it.
"""

import gzip
import json
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import trafilatura
from lxml import html

from pipeline_lib.sources.document_rows import page_row
from pipeline_lib.sources.rows import Row

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "html_extraction"
RUNS = 5
SHINGLE = 4
_WORD = re.compile(r"\w+", re.UNICODE)


def shingles(text: str) -> Counter[tuple[str, ...]]:
    """Return the word 4-grams; a shorter text is one shingle."""
    words = _WORD.findall(text)
    if not words:
        return Counter()
    size = min(SHINGLE, len(words))
    return Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))


def precision_recall(gold: str, found: str) -> tuple[float, float]:
    """Return the share of the found shingles that are gold, and of the gold ones that are found."""
    wanted, given = shingles(gold), shingles(found)
    common = (wanted & given).total()
    return common / given.total() if given else float(not wanted), common / wanted.total() if wanted else 1.0


def score(extract: Callable[[bytes], str], pages: list[tuple[bytes, str]]) -> tuple[float, float, float, float]:
    """Return (F1, mean precision, mean recall, seconds)."""
    started = time.perf_counter()
    found = [extract(page) for page, _ in pages]
    seconds = time.perf_counter() - started
    both = [precision_recall(gold, text) for (_, gold), text in zip(pages, found, strict=True)]
    precision, recall = (statistics.mean(values) for values in zip(*both, strict=True))
    return 2 * precision * recall / (precision + recall), precision, recall, seconds


def ours(page: bytes) -> str:
    """What stage 01 keeps of a page."""
    row = page_row(page, "", "", "page")
    return row.record["text"] if isinstance(row, Row) else ""


def every_word(page: bytes) -> str:
    """The text of every visible element."""
    tree = html.fromstring(page)
    for element in tree.xpath("//script|//style|//noscript"):
        element.drop_tree()
    return tree.text_content()


PEERS = {
    "trafilatura default": lambda page: trafilatura.extract(page) or "",
    "trafilatura favor_recall": lambda page: trafilatura.extract(page, favor_recall=True) or "",
    "every visible word": every_word,
}


def main() -> None:
    """Print one line per peer for RESULTS.md."""
    truth = json.loads((SHARED / "ground-truth.json").read_text("utf-8"))
    pages = []
    for name, entry in sorted(truth.items()):
        with gzip.open(SHARED / "html" / f"{name}.html.gz") as stream:
            pages.append((stream.read(), entry["articleBody"]))
    mine = [score(ours, pages)]
    theirs = {name: [score(extract, pages)] for name, extract in PEERS.items()}
    for _ in range(RUNS - 1):
        mine.append(score(ours, pages))
        for name, extract in PEERS.items():
            theirs[name].append(score(extract, pages))
    speed = len(pages) / statistics.median(run[3] for run in mine)
    for name, runs in theirs.items():
        rate = len(pages) / statistics.median(run[3] for run in runs)
        line = {
            "claim": f"main text of {len(pages)} gold pages",
            "ours": f"F1 {mine[0][0]:.3f}, {speed:.0f} pages/s",
            "peer": f"{name} F1 {runs[0][0]:.3f}, {rate:.0f} pages/s",
            "ratio": round(speed / rate, 2),
            "quality": f"ours: precision {mine[0][1]:.3f}, recall {mine[0][2]:.3f};"
            f" peer: precision {runs[0][1]:.3f}, recall {runs[0][2]:.3f}",
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__" and SHARED.is_dir():
    main()
