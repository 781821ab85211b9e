"""The default text is that of the standard library and of what requirements.txt installs, whatever else is there."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from installed_packages import install
from packaging.utils import canonicalize_name

from pipeline_lib.config.download import DownloadSettings, PythonDocsSettings
from pipeline_lib.sources.python_docs import discovery
from pipeline_lib.sources.python_docs.discovery import environment, not_installed, source_files
from pipeline_lib.sources.python_docs.harvest import Harvest
from pipeline_lib.sources.registry import what_is_not_installed
from pipeline_lib.stage import UserError

DEFAULT = tuple(PythonDocsSettings().distributions)


def forget() -> None:
    discovery._distributions.cache_clear()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    forget()
    yield folder
    forget()


@pytest.fixture
def requirements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A requirements.txt of the test's own."""
    monkeypatch.setattr(discovery, "PROJECT_ROOT", tmp_path)
    return tmp_path / "requirements.txt"


def put(site: Path, name: str, *requires: str) -> None:
    metadata = "".join(f"Requires-Dist: {line}\n" for line in requires)
    install(site, name, {f"{canonicalize_name(name).replace('-', '_')}.py": '"""Words."""'}, extra=metadata)


def names(*patterns: str) -> set[str]:
    return {name for name, _ in environment(patterns)}


def test_another_installed_package_changes_nothing(site: Path, tmp_path: Path):
    before, files = Harvest(DEFAULT, tmp_path, 1).fingerprint, source_files(DEFAULT)
    put(site, "unasked-demo", "torch")
    forget()
    assert "unasked-demo" in names("*")
    assert Harvest(DEFAULT, tmp_path, 1).fingerprint == before
    assert source_files(DEFAULT) == files


def test_what_the_project_names_and_what_that_needs_is_read_and_the_tools_of_the_tests_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert {"python", "torch", "trl", "sympy", "markupsafe"} <= names(*DEFAULT)
    assert not {"pytest", "hypothesis", "ruff", "iniconfig", "pip"} & names(*DEFAULT)
    assert not_installed(DEFAULT) == [] and what_is_not_installed(DownloadSettings()) == []


def test_requirements_are_followed_through_names_extras_markers_and_cycles(site: Path, requirements: Path):
    put(site, "First.Demo", "Second__Demo[fast]>=1", 'windows-demo; sys_platform == "nowhere"')
    put(site, "second-demo", "first-demo", 'speed-demo; extra == "fast"', 'unused-demo; extra == "slow"')
    put(site, "speed-demo", 'python-demo>=0; python_version >= "3"')
    for name in ("python-demo", "windows-demo", "unused-demo", "stranger-demo"):
        put(site, name)
    requirements.write_text("--index-url https://example.org/simple\n# words\n\nfirst_demo>=1,<2  # why\n")
    assert names("requirements.txt") == {"first-demo", "second-demo", "speed-demo", "python-demo"}
    assert {file.distribution for file in source_files(("requirements.txt", "!second*"))} == {
        "first-demo", "speed-demo", "python-demo",
    }  # fmt: skip
    assert {name for name in names("*", "!requirements.txt") if name.endswith("-demo")} == {
        "windows-demo", "unused-demo", "stranger-demo",
    }  # fmt: skip


def test_what_is_asked_for_and_not_there_is_named_as_far_as_it_was_to_be_read(site: Path, requirements: Path):
    put(site, "first-demo", "absent-part")
    requirements.write_text("first-demo\nAbsent_Demo\n")
    assert names(*DEFAULT) == {"python", "first-demo"}
    assert not_installed(DEFAULT) == ["absent-demo", "absent-part"]
    assert not_installed((*DEFAULT, "!absent-part")) == ["absent-demo"]
    assert not_installed(("python",)) == not_installed(("*",)) == []
    (line,) = what_is_not_installed(DownloadSettings())
    assert "absent-demo, absent-part" in line and "not installed" in line
    elsewhere = {"name": "mine", "kind": "text", "type": "local", "paths": [os.devnull]}
    assert what_is_not_installed(DownloadSettings(sources=[elsewhere])) == []


NO_REQUIREMENTS = ["two words", "thing>=>1", 'thing; python_version ~= "abc"']


@pytest.mark.parametrize("line", NO_REQUIREMENTS)
def test_invalid_metadata_of_an_installed_package_is_one_line_that_names_it(site: Path, requirements: Path, line: str):
    put(site, "first-demo", "second-demo")
    put(site, "second-demo", line)
    requirements.write_text("first-demo\n")
    with pytest.raises(UserError, match=r"second-demo .*set download\.python_docs\.distributions") as error:
        environment(DEFAULT)
    assert f"'Requires-Dist: {line}'" in str(error.value) and "\n" not in str(error.value)
    assert names("first-demo") == {"first-demo"}, "read only where it is asked for"


@pytest.mark.parametrize("line", ["-r more.txt", "-e .", "./wheels/thing.whl", *NO_REQUIREMENTS])
def test_a_line_that_names_no_package_is_refused_with_its_place(requirements: Path, line: str):
    requirements.write_text(f"torch\n{line}\n")
    with pytest.raises(UserError, match=r"requirements\.txt:2: .*set download\.python_docs\.distributions") as error:
        environment(DEFAULT)
    assert line in str(error.value) and "\n" not in str(error.value)
    assert names("python") == {"python"}, "read only where it is asked for"


def test_a_missing_file_is_named(requirements: Path):
    with pytest.raises(UserError, match=r"requirements\.txt is missing"):
        environment(DEFAULT)
