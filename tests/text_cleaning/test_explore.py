"""Thresholds are tried on the columns of a finished run: what comes back, what goes, and the documents in between."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from finished_download import SCHEMA, document
from test_02_clean_stage import corpus, prose

from pipeline_lib.config.clean import CleanSettings
from pipeline_lib.stage import UserError
from pipeline_lib.stage.manifest import MANIFEST, Manifest
from pipeline_lib.text_cleaning import explore, score_table
from pipeline_lib.text_cleaning.duplicate_table import DuplicateTable
from pipeline_lib.text_cleaning.explore import about_rules, effect_of_thresholds, explore_thresholds
from pipeline_lib.text_cleaning.rules import Rule, active_rules
from pipeline_lib.text_cleaning.score_table import SCORES, ScoreFile, scoring_settings, write_scores_file
from pipeline_lib.text_cleaning.shard import DocumentCleaner, Tally

PLAIN = {"language": {"keep": []}, "contamination": {"enabled": False}}
NOW = {"inputs": {"01_download": "texts"}, "seed": 0, "data": {"asked": ["questions"]}}
LENGTHS = [2, 3, 4, 5, 6]  # sentences of 16 words


def scored(folder, rows, settings):
    """Return the folder, with the scores and the manifest that stage 02 writes of these documents."""
    cleaned = DocumentCleaner(settings, [], 0).clean(pa.Table.from_pylist(rows, schema=SCHEMA), Tally())
    pq.write_table(cleaned.scores, folder / "part.parquet")
    duplicates = DuplicateTable.below(folder)
    duplicates.write(None, candidates=cleaned.kept.num_rows)
    assert write_scores_file([folder / "part.parquet"], duplicates, folder / SCORES, settings) == len(rows)
    Manifest("02_clean", NOW, {}, {}, {}, [], 0).write(folder / MANIFEST)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the scores of the test corpus and of five short documents."""
    rows = [row for shard in corpus() for row in shard]
    rows += [document(f"of-{n}", prose(500 + n, sentences=n)) for n in LENGTHS]
    return scored(tmp_path_factory.mktemp("scores"), rows, CleanSettings(**PLAIN))


def test_a_rule_shows_what_other_thresholds_change_and_its_borderline_documents(finished):
    lines = explore_thresholds(finished, CleanSettings(**PLAIN), NOW, "gopher_quality.min_words")
    text = "\n".join(lines)
    assert "gopher_quality.min_words  words < 50: 4 documents break it, 3 of them no other rule" in text
    assert "        45: +2 documents" in text and "off: +3 documents" in text
    assert "near the threshold (45 to 55): 2 of 2 documents" in text
    assert [line.split()[:3] for line in lines if " goes " in line] == [["48", "goes", "short"], ["48", "goes", "of-3"]]
    assert not any(" stays " in line for line in lines), "all others have 64 words or more, or 32"


@pytest.mark.parametrize(
    ("threshold", "values", "near"),
    [
        (0.5, [0.44, 0.45, 0.5, 0.55, 0.56, np.nan], [1, 2, 3]),  # a tenth
        (2, [0, 1, 2, 3, 4], [1, 2, 3]),  # counts: one away, though a tenth is 0.2
        (2, [1.0, 1.8, 2.1, 2.5], [1, 2]),  # the same threshold on a column that is no count
        (0, [0, 0, 1, 2], [2]),  # none at all: a document without any is not near
        (0.0, [0, 0, 0, 0], []),
        (0.3, [0, 0, 1, 1], []),
    ],
)
def test_near_is_a_tenth_of_the_threshold_or_one_of_a_count(tmp_path, threshold, values, near):
    rule = Rule("rule", "score", "above", threshold)
    ids = [str(place) for place in range(len(values))]
    columns = {"id": ids, "source": ["web"] * len(ids), "preview": ids, "rule": pa.nulls(len(ids), pa.string())}
    pq.write_table(pa.table(columns | {"score": pa.array(values, pa.float64())}), tmp_path / SCORES)
    *_, lines = about_rules(ScoreFile(tmp_path / SCORES), [rule], CleanSettings(), "all")
    assert sorted(int(line.split()[2]) for line in lines if " goes " in line or " stays " in line) == near
    assert any("none near the threshold" in line for line in lines) == (not near)


def test_every_active_rule_is_explained_when_none_is_named(finished):
    settings = CleanSettings(**PLAIN)
    lines = explore_thresholds(finished, settings, NOW, "all")
    for rule in active_rules(settings):
        assert any(line.startswith(f"{rule.name}  ") for line in lines), rule.name


def test_the_effect_of_new_thresholds_is_what_cleaning_with_them_does(finished):
    stricter = CleanSettings(**PLAIN, gopher_quality={"min_words": 90})
    (line,) = effect_of_thresholds(finished, stricter, NOW)
    rows = [row for shard in corpus() for row in shard]
    rows += [document(f"of-{n}", prose(500 + n, sentences=n)) for n in LENGTHS]
    kept = DocumentCleaner(stricter, [], 0).clean(pa.Table.from_pylist(rows, schema=SCHEMA), Tally()).kept
    assert f"  effect  {kept.num_rows} of {len(rows)} documents pass the rules" in line and "0 come back" in line


def test_nothing_is_foreseen_of_documents_too_long_to_be_scored(tmp_path):
    rows = [document("fine", prose(1)), document("short", prose(2, sentences=3))]
    rows += [document(f"long-{n}", prose(10 + n, sentences=40)) for n in range(2)]
    folder = scored(tmp_path, rows, CleanSettings(**PLAIN, max_document_bytes=2000))
    lines = explore_thresholds(folder, CleanSettings(**PLAIN, max_document_bytes=2000), NOW, "max_document_bytes")
    assert lines[0] == "4 documents; 1 pass all rules before deduplication"
    assert lines[2].endswith(": 2 documents break it, 0 of them no other rule, 2 too long to have been scored")
    assert [line.split() for line in lines[6:10]] == [[f"{n}:", "+0", "documents"] for n in (2200, 2500, 4000, "off")]
    looser = CleanSettings(**PLAIN, max_document_bytes=100_000)
    assert explore_thresholds(folder, looser, NOW, "empty")[0].endswith(", 2 too long to have been scored")
    (line,) = effect_of_thresholds(folder, looser, NOW)
    assert "1 of 4 documents pass the rules, 1 did in the last run: 0 come back, 0 go, 2 too long" in line


def test_scores_of_other_settings_are_not_used(finished, tmp_path):
    other = CleanSettings(**PLAIN, fineweb={"short_line_characters": 40})
    assert "unknown" in effect_of_thresholds(finished, other, NOW)[0]
    with pytest.raises(UserError, match="other settings"):
        explore_thresholds(finished, other, NOW, "all")
    assert "unknown" in effect_of_thresholds(finished, CleanSettings(**PLAIN), NOW | {"data": {"asked": ["others"]}})[0]
    with_c4 = CleanSettings(**PLAIN, quality_rules=["c4"])
    assert "c4_rewrites" in scoring_settings(with_c4) and "unknown" in effect_of_thresholds(finished, with_c4, NOW)[0]
    for other in ({"inputs": {"01_download": "one more source"}}, {"seed": 1}):
        assert "unknown" in effect_of_thresholds(finished, CleanSettings(**PLAIN), NOW | other)[0]
        with pytest.raises(UserError, match="other texts"):
            explore_thresholds(finished, CleanSettings(**PLAIN), NOW | other, "all")
    with pytest.raises(UserError, match=r"no active rule 'nothing'; there are .*duplicates are not foreseen"):
        explore_thresholds(finished, CleanSettings(**PLAIN), NOW, "nothing")
    with pytest.raises(UserError, match=r"no active rule 'fineweb.line_punc'; did you mean 'fineweb\."):
        explore_thresholds(finished, CleanSettings(**PLAIN), NOW, "fineweb.line_punc")
    with pytest.raises(UserError, match="without --explore"):
        explore_thresholds(tmp_path, CleanSettings(), NOW, "all")
    assert effect_of_thresholds(tmp_path, CleanSettings(), NOW) == []


def test_reading_in_parts_says_what_reading_at_once_says(finished, monkeypatch):
    settings = CleanSettings(**PLAIN, gopher_quality={"min_words": 220, "min_word_length": 4.2})

    def answers():
        return explore_thresholds(finished, settings, NOW, "all"), effect_of_thresholds(finished, settings, NOW)

    at_once = answers()
    assert sum(" stays " in line or " goes " in line for line in at_once[0]) > 20
    for rows in (1, 7, 50):
        monkeypatch.setattr(score_table, "ROWS_PER_CHUNK", rows)
        assert answers() == at_once


def test_parts_are_small_and_only_what_is_shown_is_read_of_texts(finished, monkeypatch):
    parts, shown = [], []
    judge, documents = explore.Judgement, ScoreFile.documents

    def judged(table, *rest):
        parts.append((table.num_rows, set(table.column_names)))
        return judge(table, *rest)

    def read(scores, places, columns):
        shown.extend(places)
        return documents(scores, places, columns)

    monkeypatch.setattr(score_table, "ROWS_PER_CHUNK", 10)
    monkeypatch.setattr(explore, "Judgement", judged)
    monkeypatch.setattr(ScoreFile, "documents", read)
    settings = CleanSettings(**PLAIN)
    lines = explore_thresholds(finished, settings, NOW, "gopher_quality.min_words")
    effect_of_thresholds(finished, settings, NOW)
    assert sum(rows for rows, _ in parts) == 2 * ScoreFile(finished / SCORES).rows and max(parts)[0] == 10
    assert not any({"id", "preview"} & columns for _, columns in parts)
    assert len(shown) == sum(" goes " in line or " stays " in line for line in lines) == 2


def test_sources_made_exempt_change_texts_where_lines_are_taken_out(tmp_path):
    plain, exempt = ({"exempt_sources": sources} for sources in ([], ["web"]))
    for number, rewriting in enumerate(({"remove_symbol_lines": True}, {"quality_rules": ["c4"]}, {})):
        (tmp_path / str(number)).mkdir()
        folder = scored(tmp_path / str(number), [document("a", prose(1))], CleanSettings(**PLAIN, **rewriting, **plain))
        (line,) = effect_of_thresholds(folder, CleanSettings(**PLAIN, **rewriting, **exempt), NOW)
        assert ("unknown" in line) == bool(rewriting)
