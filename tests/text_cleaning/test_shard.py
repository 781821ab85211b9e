"""One batch through the whole cleaner: what stays, what goes, and what is counted."""

import json

import pyarrow as pa
import pytest
from finished_download import SCHEMA, document
from test_02_clean_stage import corpus, prose

from pipeline_lib.config.clean import CleanSettings
from pipeline_lib.text_cleaning.document_scores import SCORE_COLUMNS
from pipeline_lib.text_cleaning.shard import DocumentCleaner, Tally

LENIENT = {"quality_rules": [], "language": {"keep": []}, "contamination": {"enabled": False}}


def clean(documents, settings):
    tally = Tally()
    cleaned = DocumentCleaner(CleanSettings(**settings), [], seed=0).clean(
        pa.Table.from_pylist(documents, schema=SCHEMA), tally
    )
    return cleaned, tally


def test_without_rules_and_languages_every_document_with_text_stays():
    documents = [row for shard in corpus() for row in shard]
    cleaned, tally = clean(documents, LENIENT)
    assert cleaned.receipts["id"].to_pylist() == ["empty"]
    assert cleaned.kept.num_rows == len(documents) - 1
    assert "language" not in cleaned.kept.column_names and set(SCORE_COLUMNS) < set(cleaned.kept.column_names)
    assert tally.replaced == {("web", "email"): 1, ("web", "phone"): 1}


@pytest.mark.parametrize("settings", [LENIENT, {}, {"quality_rules": ["c4"]}, {"quality_rules": ["fineweb", "c4"]}])
def test_bytes_in_are_bytes_kept_dropped_and_rewritten(settings):
    documents = [row for shard in corpus() for row in shard]
    cleaned, tally = clean(documents, settings)
    for source in ("web", "books"):
        entered = sum(len(row["text"].encode()) for row in documents if row["source"] == source)
        kept = sum(len(row["text"].encode()) for row in cleaned.kept.to_pylist() if row["source"] == source)
        dropped = sum(n for (name, _, measure), n in tally.dropped.items() if (name, measure) == (source, "bytes"))
        assert tally.entered[source, "bytes"] == entered == kept + dropped + tally.rewritten[source]


def test_c4_rewrites_documents_only_when_it_is_chosen():
    page = document("page", prose(5) + "\nHome | About | Contact\nPlease enable JavaScript to go on.")
    cleaned, _ = clean([page], LENIENT | {"quality_rules": ["c4"]})
    assert cleaned.kept["text"].to_pylist() == [prose(5)] and cleaned.kept["sentences"].to_pylist() == [14]
    cleaned, _ = clean([page], LENIENT)
    assert cleaned.kept["text"].to_pylist() == [page["text"]] and "sentences" not in cleaned.kept.column_names


def test_a_copied_record_is_found_although_personal_data_in_it_is_replaced(tmp_path):
    question = "Write to ada.lovelace@engines.org about all of the seven wheels before Tuesday at nine sharp"
    (tmp_path / "letters.jsonl").write_text(json.dumps({"question": question}) + "\n")
    settings = CleanSettings(**LENIENT | {"contamination": {"enabled": True}})
    cleaner = DocumentCleaner(settings, [tmp_path / "letters.jsonl"], seed=0)
    rows = pa.Table.from_pylist([document("copy", question), document("other", prose(3))], schema=SCHEMA)
    cleaned = cleaner.clean(rows, Tally())
    assert cleaned.kept["id"].to_pylist() == ["other"]
    (receipt,) = cleaned.receipts.to_pylist()
    assert (receipt["rule"], receipt["survivor_id"]) == ("contamination", "eval/letters.jsonl:1")
    assert "ada" not in receipt["preview"]


CITED = (
    "The mill by the river was built in 1901.[3] It burnt to the ground in 1912.[4] The owner left[citation needed] the"
    " town for good.[12] Nobody ever saw him or his sons again.[edit]"
)
BROKEN = "L’école du village était fermée depuis l’été, et les élèves n’étaient donc plus là à la rentrée"
BROKEN = BROKEN.encode().decode("windows-1252", "replace")


@pytest.mark.parametrize("engine", ["compiled", "datatrove"])
@pytest.mark.parametrize(
    ("question", "rewriting"),
    [
        (CITED, {"quality_rules": ["c4"], "c4": {"min_sentences": None}}),
        (CITED, {"quality_rules": ["c4"], "exempt_sources": ["web"]}),
        (CITED, {}),
        (BROKEN, {"normalise": "full"}),
        (CITED.replace("The owner", "Ada (ada@engines.org)"), {"quality_rules": ["c4"], "c4": {"min_sentences": None}}),
    ],
)
def test_a_copied_record_is_found_whatever_rewrites_the_page(tmp_path, question, rewriting, engine):
    (tmp_path / "facts.jsonl").write_text(json.dumps({"question": question}) + "\n")
    settings = CleanSettings(**LENIENT | {"contamination": {"enabled": True}} | rewriting | {"quality_engine": engine})
    cleaner = DocumentCleaner(settings, [tmp_path / "facts.jsonl"], seed=0)
    rows = pa.Table.from_pylist([document("copy", question), document("other", prose(3))], schema=SCHEMA)
    cleaned = cleaner.clean(rows, Tally())
    assert [(row["id"], row["rule"]) for row in cleaned.receipts.to_pylist()] == [("copy", "contamination")]
    if "exempt_sources" not in rewriting:
        assert cleaned.scores["contamination"][0].as_py() == cleaner.index.ngrams[0] > 0, "counted as documents read"


def test_the_receipt_names_rule_score_and_threshold():
    cleaned, _ = clean([document("short", prose(7, sentences=3)), document("fine", prose(8))], {})
    (receipt,) = cleaned.receipts.to_pylist()
    assert (receipt["rule"], receipt["score"], receipt["threshold"]) == ("gopher_quality.min_words", 48.0, 50.0)
    assert receipt["preview"] == prose(7, sentences=3)[:200]
    assert receipt["survivor_id"] is None and receipt["jaccard"] is None


def test_the_verdict_on_a_document_does_not_depend_on_its_neighbours():
    documents = [row for shard in corpus() for row in shard]
    together, _ = clean(documents, {})
    apart = [clean([row], {})[0].kept for row in documents[-6:]]
    ids = {identity for table in apart for identity in table["id"].to_pylist()}
    assert ids == {row["id"] for row in documents[-6:]} & set(together.kept["id"].to_pylist())


def test_exempt_sources_are_judged_by_nothing_but_emptiness_and_contamination():
    rows = [document("code", "{ x }\n{ x }", "code"), document("none", " \n", "code"), document("web", "{ x }\n{ x }")]
    cleaned, _ = clean(rows, {"exempt_sources": ["code"], "quality_rules": ["gopher_quality", "c4"]})
    assert cleaned.kept["id"].to_pylist() == ["code"] and cleaned.kept["text"].to_pylist() == ["{ x }\n{ x }"]
    assert {row["id"]: row["rule"] for row in cleaned.receipts.to_pylist()} == {
        "none": "empty",
        "web": "c4.min_sentences",
    }
