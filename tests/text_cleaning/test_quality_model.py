"""The classifier learns from examples, scores in compiled code what it learned, and judges documents in stage 02."""

import gzip
import json
import random

import numpy as np
import pyarrow as pa
import pytest
from finished_download import document, finish_download
from test_02_clean_stage import kept_by, prose, receipts_of, start

from pipeline_lib.config.clean import CleanSettings
from pipeline_lib.sources import units
from pipeline_lib.stage import UserError
from pipeline_lib.stage.manifest import MANIFEST, Manifest
from pipeline_lib.text_cleaning import quality_examples
from pipeline_lib.text_cleaning.quality_examples import train_on_examples
from pipeline_lib.text_cleaning.quality_model import BUCKETS, QualityModel, train

RECIPE = ["simmer", "onion", "garlic", "butter", "stir", "salt", "pepper", "oven", "bake", "flour", "whisk", "egg"]
LEDGER = ["invoice", "balance", "audit", "tax", "quarter", "asset", "margin", "debt", "fiscal", "yield", "bond"]


def texts(words: list[str], number: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    shared = ["the", "and", "of", "with", "a", "is"]
    return [" ".join(rng.choice([*words, *shared, *shared]) for _ in range(60)) for _ in range(number)]


def strings(values: list[str]) -> pa.Array:
    return pa.array(values, pa.large_string())


def area_under_curve(scores: np.ndarray, labels: np.ndarray) -> float:
    """ROC AUC by counting pairs."""
    better = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    return float((better > 0).mean() + 0.5 * (better == 0).mean())


def reference_features(text: str) -> dict[tuple[str, ...], float]:
    words = text.split()
    grams = [(word,) for word in words] + list(zip(words, words[1:], strict=False))
    counts = {gram: np.log1p(grams.count(gram)) for gram in set(grams)}
    norm = np.sqrt(sum(value**2 for value in counts.values()))
    return {gram: value / norm for gram, value in counts.items()}


@pytest.mark.slow
def test_unseen_texts_are_told_apart_and_a_second_training_gives_the_same_model():
    wanted, unwanted = strings(texts(RECIPE, 40, 1)), strings(texts(LEDGER, 90, 2))
    model = train(wanted, unwanted, seed=0)
    assert model.score(strings(texts(RECIPE, 20, 3))).min() > 0.5 > model.score(strings(texts(LEDGER, 20, 4))).max()
    assert np.array_equal(model.weights, train(wanted, unwanted, seed=0).weights)
    assert not np.array_equal(model.weights, train(wanted, unwanted, seed=1).weights)


def test_scores_are_the_logistic_of_a_dot_product_of_scaled_log_counts():
    words = ["alpha", "beta", "gamma", "delta"]
    probes = {gram: QualityModel(np.zeros(BUCKETS + 1, np.float32)) for gram in [("alpha",), ("alpha", "beta")]}
    text = "alpha beta alpha beta alpha gamma delta"
    expected = reference_features(text)
    assert set(words) == set(text.split())
    for gram, model in probes.items():
        place = np.flatnonzero(train(strings([" ".join(gram)]), strings(["zeta"]), 0).weights[:-1] > 0)
        totals = [expected[part] for part in ([gram] if len(gram) == 1 else [gram, *((word,) for word in gram)])]
        model.weights[place] = 1.0
        model.weights[-1] = 0.25
        assert model.score(strings([text]))[0] == pytest.approx(1 / (1 + np.exp(-0.25 - sum(totals))), rel=1e-6)


def test_empty_texts_get_the_constant_and_examples_without_words_are_refused():
    model = train(strings(texts(RECIPE, 5, 1)), strings(texts(LEDGER, 5, 2)), seed=0)
    constant = 1 / (1 + np.exp(-float(model.weights[-1])))
    assert model.score(strings(["", "", "onion"]))[:2] == pytest.approx([constant, constant])
    assert model.score(strings([])).shape == (0,)
    with pytest.raises(UserError, match="contrast of clean.quality_model hold no words"):
        train(strings(["word"]), strings(["", " "]), seed=0)


def test_a_saved_model_comes_back_and_a_damaged_file_is_named(tmp_path):
    model = train(strings(["one two"]), strings(["three"]), seed=0)
    model.save(tmp_path / "model.npy")
    assert np.array_equal(QualityModel.load(tmp_path / "model.npy").weights, model.weights)
    for content in (b"", b"\x93NUMPY", (tmp_path / "model.npy").read_bytes()[:1000]):
        (tmp_path / "cut.npy").write_bytes(content)
        with pytest.raises(UserError, match=r"cut\.npy is no quality model"):
            QualityModel.load(tmp_path / "cut.npy")


def test_people_agree_more_with_it_than_with_the_published_rules(shared_data):
    with gzip.open(shared_data / "quality" / "dclm_agreement_data.jsonl.gz") as lines:
        rows = [json.loads(line) for line in lines]
    pages, labels = np.array([row["text"] for row in rows], object), np.array([int(row["label"]) for row in rows])
    learnt = np.arange(len(rows)) % 2 == 0
    sides = [strings(pages[learnt & (labels == label)].tolist()) for label in (1, 0)]
    scores = train(*sides, seed=0).score(strings(pages[~learnt].tolist()))
    assert area_under_curve(scores, labels[~learnt]) > 0.85


@pytest.mark.long
def test_stage_02_removes_by_the_score_of_a_model_trained_on_the_users_files(tmp_path):
    wanted = tmp_path / "like_this.jsonl"
    wanted.write_text("".join(json.dumps({"text": prose(seed)}) + "\n" for seed in range(30)))
    (tmp_path / "not_this.txt").write_text("\n---\n".join(texts(LEDGER, 30, 6)))
    other = [f"{text}." for text in texts(LEDGER, 12, 5)]
    rows = [document(f"good-{i}", prose(100 + i)) for i in range(12)] + [
        document(f"dull-{i}", text) for i, text in enumerate(other)
    ]
    finish_download(tmp_path, [rows])
    flags = [
        "--quality_rules", "[]", "--language.keep", "[]", "--contamination.enabled", "false",
        "--quality_model.examples", json.dumps([str(wanted)]), "--quality_model.min_score", "0.5",
        "--quality_model.contrast", json.dumps([str(tmp_path / "not_this.txt")]),
    ]  # fmt: skip
    planned = start(tmp_path, "--plan", *flags)
    assert planned.returncode == 0 and "documents cleaned" in planned.stdout, planned.stdout + planned.stderr
    done = start(tmp_path, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["rule"] for row in receipts_of(tmp_path).values()} == {"quality_model.min_score"}
    assert set(receipts_of(tmp_path)) == {f"dull-{i}" for i in range(12)}
    assert all(0.5 <= row["quality_model"] <= 1 for row in kept_by(tmp_path).values())
    assert "quality_model.npy" in Manifest.read(tmp_path / "02_clean" / MANIFEST).files
    assert "up to date" in start(tmp_path, *flags).stdout
    wanted.write_text("")
    refused = start(tmp_path, *flags)
    assert refused.returncode == 2 and "empty" in refused.stderr


def test_without_a_contrast_the_corpus_itself_is_one(tmp_path):
    wanted = tmp_path / "like_this.txt"
    wanted.write_text(" ".join(texts(RECIPE, 30, 1)))
    rows = [document(f"d{i}", text) for i, text in enumerate(texts(LEDGER, 20, 5) + texts(RECIPE, 20, 6))]
    folder = finish_download(tmp_path, [rows])
    settings = CleanSettings(quality_model={"examples": [str(wanted)]})
    model, counts = train_on_examples(settings, sorted(folder.glob("part-*.parquet")), seed=0)
    assert counts == {"examples": 1, "contrast": 40}
    assert model.score(strings(texts(RECIPE, 9, 7))).mean() > model.score(strings(texts(LEDGER, 9, 8))).mean()


def test_examples_that_are_not_there_are_named(tmp_path):
    settings = CleanSettings(quality_model={"examples": [str(tmp_path / "missing.jsonl")]})
    with pytest.raises(UserError, match=r"missing\.jsonl does not exist"):
        train_on_examples(settings, [], seed=0)


def test_more_examples_than_are_read_are_taken_from_every_file_and_the_card_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(quality_examples, "MOST_BYTES", 4000)
    monkeypatch.setattr(units, "FILES_PER_UNIT", 1)
    sides = {"a_large": ("recipe salt butter flour", 500), "b": ("ledger balance", 3), "c": ("forest river", 90)}
    for name, (text, count) in sides.items():
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{text}"}}\n' * count)
    settings = CleanSettings(quality_model={"examples": [str(tmp_path / f"{name}.jsonl") for name in sides]})
    notes = []
    found = quality_examples.examples(settings.quality_model.examples, "examples", settings, notes.append).to_pylist()
    counts = {name: found.count(text) for name, (text, _) in sides.items()}
    assert counts == {"a_large": 56, "b": 3, "c": 90}  # a third, 1,333 bytes, of the first; c gets what b leaves over
    assert notes == [
        "clean.quality_model.examples: learned from 149 documents, the first of every 64 MiB of files, not from all"
    ]
    monkeypatch.setattr(quality_examples, "MOST_BYTES", 40_000)
    notes.clear()
    assert len(quality_examples.examples(settings.quality_model.examples, "examples", settings, notes.append)) == 593
    assert notes == []
