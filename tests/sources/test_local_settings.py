"""An entry of `download.sources` that cannot work is refused with what to change, before anything is read."""

import pytest
from pydantic import ValidationError

from pipeline_lib.config.sources import TYPES_OF_FIELD, SourceSettings

LOCAL = {"name": "mine", "kind": "text", "type": "local", "paths": ["x.jsonl"]}
HUB = {"name": "web", "kind": "text", "type": "hub", "repo": "owner/set"}
HTTP = {"name": "dump", "kind": "text", "type": "http", "urls": [{"url": "https://a.org/x.jsonl", "sha256": "0" * 64}]}


@pytest.mark.parametrize("entry", [LOCAL, HUB, HTTP, {"name": "python_docs", "kind": "eval", "type": "python_docs"}])
def test_smallest_entry_of_each_type_is_valid(entry):
    assert SourceSettings(**entry).record_format in ("text", "eval")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({**LOCAL, "repo": "a/b"}, "`repo` has no meaning for type local"),
        ({**LOCAL, "attempts": 3}, "`attempts` has no meaning for type local"),
        ({**HUB, "paths": ["x"]}, "`paths` has no meaning for type hub"),
        ({"name": "p", "kind": "text", "type": "python_docs", "text_field": "t"}, "no meaning for type python_docs"),
        ({**LOCAL, "paths": []}, "needs `paths`"),
        ({**HTTP, "urls": []}, "needs `urls`"),
        ({**HUB, "repo": None}, "needs `repo`"),
        ({**HUB, "files": ["a/*.parquet"], "split": "test"}, "either `files` or `config_name`/`split`"),
        ({**LOCAL, "kind": "sft"}, "kind sft needs a `format`: one of alpaca"),
        ({**LOCAL, "kind": "preference", "format": "alpaca"}, "format alpaca does not fit kind preference"),
        ({**LOCAL, "name": "My Data"}, "should match pattern"),
        ({**HTTP, "urls": [{"url": "ftp://a.org/x", "sha256": "0" * 64}]}, "should match pattern"),
        ({**HTTP, "urls": [{"url": "https://a.org/x", "sha256": "0" * 63}]}, "should match pattern"),
        ({**LOCAL, "max_documents": 0}, "greater than 0"),
        ({**LOCAL, "path": "x"}, "Extra inputs"),
    ],
)
def test_entry_that_cannot_work_says_what_to_change(entry, words):
    with pytest.raises(ValidationError, match=words):
        SourceSettings(**entry)


def test_every_field_bound_to_types_exists_and_is_described():
    assert set(TYPES_OF_FIELD) <= set(SourceSettings.model_fields)
    assert all(field.description for field in SourceSettings.model_fields.values())
