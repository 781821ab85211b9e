"""The quality model against people: ROC AUC on the human labels of DCLM's agreement study, and seconds.

281 web pages, each called good or not by people. The model is trained on some of the labelled pages and judged on the
others (five folds, five seeds: mean and range); Gopher's rules, and Gopher's and FineWeb's, are judged as what they
are, a keep or drop. A third figure is the honest limit: trained on text that is merely of a good kind (encyclopedia and
government pages against C4), without a labelled page, the model knows much less of what people like.
Needs ../shared/data; prints nothing without it.
"""

import gzip
import json
import statistics
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline_lib.config.clean import CleanSettings
from pipeline_lib.text_cleaning.document_scores import score_documents
from pipeline_lib.text_cleaning.normalise import normalise
from pipeline_lib.text_cleaning.quality_model import train
from pipeline_lib.text_cleaning.rules import KEPT, active_rules, first_broken

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FOLDS = SEEDS = 5


def strings(texts: list[str]) -> pa.Array:
    """Return the repaired texts as an Arrow array."""
    return pa.array([normalise(text) for text in texts], pa.large_string())


def area_under_curve(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the ROC AUC: how often a good page scores above a bad one, half for equal scores."""
    better = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    return float((better > 0).mean() + 0.5 * (better == 0).mean())


def rows_of(name: str) -> list[dict]:
    """Return the records of a gzipped file of JSON lines."""
    with gzip.open(SHARED / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def cross_validated(pages: pa.Array, labels: np.ndarray, seed: int) -> tuple[float, float]:
    """Return (AUC of the scores that pages get while they are held out, seconds of one training and scoring)."""
    fold = np.random.default_rng(seed).permutation(len(labels)) % FOLDS
    scores, seconds = np.zeros(len(labels)), []
    for number in range(FOLDS):
        started = time.perf_counter()
        sides = [pages.filter(pa.array((fold != number) & (labels == label))) for label in (1, 0)]
        scores[fold == number] = train(*sides, seed=seed).score(pages.filter(pa.array(fold == number)))
        seconds.append(time.perf_counter() - started)
    return area_under_curve(scores, labels), statistics.median(seconds)


def rules_kept(pages: pa.Array, groups: list[str]) -> np.ndarray:
    """Return 1 for each page that the published rules keep, 0 for the others."""
    settings = CleanSettings(quality_rules=groups, language={"keep": []}, contamination={"enabled": False},
                             max_document_bytes=None)  # fmt: skip
    columns = {"invalid_utf8": np.zeros(len(pages), np.int8)}  # they are text here
    columns |= score_documents(pages, settings.gopher_quality.stop_words, settings.fineweb.short_line_characters)
    return (first_broken(columns, active_rules(settings)) == KEPT).astype(float)


def main() -> None:
    """Print one line for RESULTS.md."""
    rows = rows_of("quality/dclm_agreement_data.jsonl.gz")
    pages, labels = strings([row["text"] for row in rows]), np.array([int(row["label"]) for row in rows])
    train(strings(["one"]), strings(["two"]), seed=0)  # compiled once per machine, not measured
    measured = [cross_validated(pages, labels, seed) for seed in range(SEEDS)]
    areas = [area for area, _ in measured]
    gopher = area_under_curve(rules_kept(pages, ["gopher_repetition", "gopher_quality"]), labels)
    all_rules = area_under_curve(rules_kept(pages, ["gopher_repetition", "gopher_quality", "fineweb"]), labels)
    with gzip.open(SHARED / "pretrain_text" / "wiki_demo.txt.gz", "rt", encoding="utf-8") as stream:
        articles = stream.read()
    good = [articles[at : at + 2500] for at in range(0, len(articles), 2500)]
    good += [row["text"] for row in rows_of("webdocs/us_gov_posts.jsonl.gz")[:400]]
    plain = strings([row["text"] for row in rows_of("pretrain_text/c4_demo.jsonl.gz")])
    without_labels = area_under_curve(train(strings(good), plain, seed=0).score(pages), labels)
    line = {
        "claim": "agreement with people on web pages (ROC AUC)",
        "ours": f"{statistics.mean(areas):.3f} ({min(areas):.3f} to {max(areas):.3f})",
        "peer": f"Gopher rules {gopher:.3f}, with FineWeb's {all_rules:.3f}",
        "ratio": round(statistics.mean(areas) / gopher, 2),
        "quality": f"{len(rows)} pages, {int(labels.sum())} good; trained on four fifths of the labels and scored in"
        f" {statistics.median(seconds for _, seconds in measured):.2f} s; trained without labels {without_labels:.3f}",
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__" and SHARED.is_dir():
    main()
