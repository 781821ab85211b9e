"""What is found is what an installer put there, once, with its licence; and the standard library."""

import importlib.metadata
import sys
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest
from installed_packages import install

from pipeline_lib.sources.base import Dropped
from pipeline_lib.sources.python_docs import discovery
from pipeline_lib.sources.python_docs.discovery import environment, license_of, source_files
from pipeline_lib.sources.python_docs.harvest import Harvest, group_files


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    discovery._distributions.cache_clear()
    yield folder
    discovery._distributions.cache_clear()


def test_standard_library_holds_standard_modules_only_and_no_tests():
    files = source_files(("python",))
    modules = [file.module for file in files]
    assert {"json", "json.decoder", "textwrap", "concurrent.futures.process"} <= set(modules)
    assert {module.partition(".")[0] for module in modules} <= sys.stdlib_module_names
    assert not [module for module in modules if {"test", "tests"} & set(module.split("."))]
    assert len(set(modules)) == len(modules)
    assert {file.license for file in files} == {"PSF-2.0"}
    assert all(file.size == Path(file.path).stat().st_size for file in files)
    decoder = next(file for file in files if file.module == "json.decoder")
    assert decoder.url == f"pkg:generic/python@{sys.version.split()[0]}#json/decoder.py"


def test_a_distribution_gives_its_modules_and_nothing_else(site: Path):
    install(site, "Demo_Thing", {
        "demo/__init__.py": '"""Demo."""', "demo/part.py": '"""Part."""', "single.py": "", "demo/data.txt": "x",
        "demo/tests/test_part.py": "", "demo/tests/helper.py": "", "demo/test_it.py": "", "demo/conftest.py": "",
        "demo/testing.py": "", "../bin/script.py": "", "demo-1.0.data/extra.py": "",
    }, extra="License-Expression: MIT\n")  # fmt: skip
    files = source_files(("demo-thing",))
    assert {file.module for file in files} == {"demo", "demo.part", "demo.testing", "single"}
    assert {(file.distribution, file.version, file.license) for file in files} == {("demo-thing", "1.0", "MIT")}
    assert files[0].url.startswith("pkg:pypi/demo-thing@1.0#demo/")


def test_patterns_choose_distributions_and_the_last_match_counts(site: Path):
    for name in ("first-demo", "second-demo", "second-demo-extra"):
        install(site, name, {f"{name.replace('-', '_')}.py": ""})

    def chosen(*patterns: str) -> set[str]:
        return {name for name, _ in environment(patterns) if "demo" in name or name == "python"}

    assert chosen("*-demo") == {"first-demo", "second-demo"}
    assert chosen("Second_Demo*", "!second-demo-extra") == {"second-demo"}
    assert chosen("!second*") == {"first-demo", "python"}
    assert chosen("*", "!*demo*", "first-demo") == {"first-demo", "python"}
    assert {file.distribution for file in source_files(("second*",))} == {"second-demo", "second-demo-extra"}


def test_every_installed_distribution_is_listed():
    listed = {name for name, _ in environment(("*",))}
    for distribution in importlib.metadata.distributions():
        assert distribution.metadata["Name"].lower().replace("_", "-").replace(".", "-") in listed
    assert "python" in listed


def test_the_fingerprint_changes_with_versions_and_with_nothing_else(site: Path, tmp_path: Path):
    install(site, "first-demo", {"first.py": '"""One."""'}, version="1.0")
    before = Harvest(["first*"], tmp_path, 1).fingerprint
    install(site, "second-demo", {"second.py": ""})
    discovery._distributions.cache_clear()
    assert Harvest(["first*"], tmp_path, 1).fingerprint == before
    (site / "first_demo-1.0.dist-info").rename(site / "first_demo-1.1.dist-info")
    metadata = site / "first_demo-1.1.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "1.1"))
    discovery._distributions.cache_clear()
    assert Harvest(["first*"], tmp_path, 1).fingerprint != before


CLASSIFIER = "License :: OSI Approved :: "


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ([("License-Expression", "MIT AND Zlib"), ("License", "other")], "MIT AND Zlib"),
        ([("License", "Apache 2.0"), ("Classifier", CLASSIFIER + "BSD License")], "Apache 2.0"),
        ([("License", "UNKNOWN"), ("Classifier", CLASSIFIER + "ISC License (ISCL)")], "ISC License (ISCL)"),
        ([("License", "Copyright (c)\nAll rights"), ("Classifier", CLASSIFIER + "BSD License")], "BSD License"),
        ([("Classifier", CLASSIFIER + "A"), ("Classifier", CLASSIFIER + "B")], "A OR B"),
        ([("Classifier", "Topic :: Text")], "unknown"),
        ([], "unknown"),
    ],
)
def test_the_licence_is_the_most_exact_statement_of_the_metadata(fields: list[tuple[str, str]], licence: str):
    metadata = Message()
    for name, value in fields:
        metadata[name] = value
    assert license_of(metadata) == licence


def test_files_that_give_no_document_say_why(site: Path, tmp_path: Path):
    install(site, "odd-demo", {
        "odd/good.py": '"""Words here."""', "odd/table.py": "X = 1", "odd/quiet.py": 'X = """no docstring"""',
        "odd/python2.py": 'print "x"\n"""y"""', "odd/gone.py": '"""Gone."""',
    })  # fmt: skip
    (site / "odd" / "gone.py").unlink()
    harvest = Harvest(["odd-demo"], tmp_path / "scratch", 1)
    (records,) = harvest.records(harvest.units())
    assert [record["text"] for record in records if not isinstance(record, Dropped)] == ["odd.good\n\nWords here.\n"]
    assert sorted(record.reason for record in records if isinstance(record, Dropped)) == [
        "does not parse (SyntaxError)", "listed by its distribution but not on disk", "no docstring", "no docstring",
    ]  # fmt: skip


def test_units_cover_every_file_once_in_order():
    files = source_files(("python",))
    units = group_files(files)
    assert [file for unit in units.values() for file in unit] == files
    assert len(units) > 1
