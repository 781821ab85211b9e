"""Both engines give the same documents the same rule when they count the same words."""

import gzip
import json
from importlib.util import find_spec

import pyarrow as pa
import pytest
from finished_download import SCHEMA, document

from pipeline_lib.config.clean import CleanSettings
from pipeline_lib.stage import UserError
from pipeline_lib.text_cleaning.datatrove_filter import DatatroveQualityFilter
from pipeline_lib.text_cleaning.shard import DocumentCleaner, Tally

ALL = {
    "quality_rules": ["gopher_repetition", "gopher_quality", "c4", "fineweb"],
    "c4": {"terminal_punctuation": False},
    "language": {"keep": []},
    "contamination": {"enabled": False},
}


def test_both_engines_keep_the_same_documents_and_name_the_same_rules(shared_data):
    with gzip.open(shared_data / "pretrain_text/c4_demo.jsonl.gz") as lines:
        rows = [document(f"d{i}", json.loads(line)["text"]) for i, line in enumerate(lines)]
    batch = pa.Table.from_pylist(rows, schema=SCHEMA)
    compiled, theirs = (
        DocumentCleaner(CleanSettings(**ALL, quality_engine=engine), [], 0).clean(batch, Tally())
        for engine in ("compiled", "datatrove")
    )
    assert theirs.kept.select(["id", "text"]).equals(compiled.kept.select(["id", "text"]))
    assert theirs.receipts["rule"].to_pylist() == compiled.receipts["rule"].to_pylist()
    assert theirs.receipts["score"].null_count == theirs.receipts.num_rows > 20


def test_a_threshold_that_is_null_is_off_in_both():
    text = "one two"
    assert DatatroveQualityFilter(CleanSettings(**ALL)).broken_rule(text) is not None
    groups = {name: {} for name in ("gopher_quality", "gopher_repetition", "fineweb")}
    for name in groups:
        fields = type(getattr(CleanSettings(), name)).model_fields
        groups[name] = {field: None for field in fields if field.startswith(("min_", "max_"))}
    assert DatatroveQualityFilter(CleanSettings(**ALL | groups)).broken_rule(text) is None


def test_what_datatrove_cannot_do_is_said():
    with pytest.raises(UserError, match="one threshold for # signs and ellipses"):
        DatatroveQualityFilter(CleanSettings(**ALL, gopher_quality={"max_hash_ratio": 0.2}))
    if find_spec("spacy") is None:
        with pytest.raises(UserError, match="pip install spacy"):
            DatatroveQualityFilter(CleanSettings(**ALL, datatrove_words="datatrove"))
