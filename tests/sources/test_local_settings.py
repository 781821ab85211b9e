"""An entry of `download.sources` that cannot work is refused with what to change, before anything is read."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from pipeline_lib.config.run import RunConfig
from pipeline_lib.config.sources import TYPES_OF_FIELD, SourceSettings

ROOT = Path(__file__).resolve().parents[2]
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
        ({**HUB, "kind": "eval", "id_field": "id"}, "`id_field` has no meaning for kind eval"),
        ({**LOCAL, "kind": "sft", "format": "messages", "text_field": "t"}, "`text_field` has no meaning for kind sft"),
        ({**LOCAL, "paths": []}, "needs `paths`"),
        ({**HTTP, "urls": []}, "needs `urls`"),
        ({**HUB, "repo": None}, "needs `repo`"),
        ({**HUB, "files": ["a/*.parquet"], "split": "test"}, "either `files` or `config_name`/`split`"),
        ({**LOCAL, "kind": "sft"}, "kind sft needs a `format`: one of messages, alpaca, sharegpt"),
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


@pytest.mark.parametrize("name", ["gpu_125m", "gpu_1b"])
def test_configurations_of_large_runs_name_a_public_licensed_set_for_every_stage(name):
    entries = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text(encoding="utf-8"))["download"]["sources"]
    sources = [SourceSettings(**entry) for entry in entries]
    public = [source for source in sources if source.type == "hub"]
    assert {source.kind for source in public} == {"text", "sft", "reasoning", "preference", "domain", "eval"}
    assert all(source.license for source in public)
    assert len({(source.kind, source.name) for source in sources}) == len(sources)


def test_guide_to_data_sources_names_every_field_and_its_examples_are_valid():
    guide = (ROOT / "docs/data_sources.md").read_text(encoding="utf-8")
    assert [field for field in SourceSettings.model_fields if f"`{field}`" not in guide] == []
    examples = 0
    for block in re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL):
        value = yaml.safe_load(block)
        whole = value if isinstance(value, dict) else {"download": {"sources": value}}
        config = RunConfig(**{key: section for key, section in whole.items() if key != "base"})
        examples += len(config.download.sources) if "download" in whole else 0
    assert examples >= 10


def test_patience_decides_nothing_in_what_is_downloaded():
    def deciding(**changed) -> dict:
        return RunConfig.model_validate({"download": {"sources": [LOCAL, {**HUB, **changed}]}}).download.deciding()

    assert deciding() == deciding(attempts=9, timeout_seconds=5.0, longest_wait_seconds=300.0)
    assert deciding() != deciding(repo="owner/other")
    mine, web = deciding()["sources"]
    assert (mine["paths"], web["repo"]) == (["x.jsonl"], "owner/set") and "attempts" not in web
