"""Files added behind the others begin units of their own, once and again, and nothing else moves a border."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib.sources.base import Workbench
from pipeline_lib.sources.growth import unit_borders
from pipeline_lib.sources.units import plan_units
from pipeline_lib.stage import Unit
from pipeline_lib.stage.manifest import MANIFEST, Manifest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engines"))
import in_process  # noqa: E402

SCRIPT = "01_download_data.py"
sizes_of_steps = st.lists(st.lists(st.integers(0, 90 << 20), min_size=1, max_size=6), min_size=1, max_size=5)


@given(sizes_of_steps, st.sampled_from(["a.jsonl", "a.csv"]))
def test_the_units_of_every_step_of_growth_begin_with_those_of_the_step_before(steps, name):
    sizes, borders, before = [], [], []
    for step in steps:
        borders += [len(sizes)] if sizes else []
        sizes = sizes + step
        units = plan_units([name] * len(sizes), sizes, borders)
        assert units[: len(before)] == before and len(units) > len(before)
        assert len({(piece.file, piece.share) for unit in units for piece in unit}) == sum(map(len, units))
        assert {piece.file for unit in units for piece in unit} == set(range(len(sizes)))
        before = units


@pytest.mark.parametrize(
    ("known", "published", "today", "expected"),
    [
        ("", [], "abc", []),
        ("abc", [], "abc", []),
        ("abc", [], "abcd", [3]),
        ("abcd", [3], "abcde", [3, 4]),
        ("abcd", [3], "abcd", [3]),
        ("abcd", [1, 3], "abXd", [1]),
        ("abcd", [1, 3], "abXdef", [1]),
        ("abcd", [1, 3], "abc", [1]),
        ("abc", [2], "Xabc", []),
    ],
)
def test_a_border_stays_while_the_files_before_it_are_the_same(tmp_path, known, published, today, expected):
    def entries(letters):
        return [{"path": letter} for letter in letters]

    asked = []
    before = {"text/x": {"files": entries(known), **({"borders": published} if published else {})}}
    files = (asked.append(entry) or entry for entry in entries(today))
    bench = Workbench(tmp_path, published=before)
    assert unit_borders(bench, "text", "x", files, len(today)) == expected
    assert len(asked) <= len(known), "a digest costs reading the file"
    later = Workbench(tmp_path, reader="another process")
    assert unit_borders(later, "text", "x", iter(()), len(today)) == expected
    assert unit_borders(bench, "eval", "x", iter(entries(today)), len(today)) == []


class GrowingRun:
    """A run of stage 01 over a folder of small files, in this process."""

    def __init__(self, tmp_path, monkeypatch, **fields):
        self.data, self.config, self._monkeypatch = tmp_path / "data", tmp_path / "config.yaml", monkeypatch
        self.data.mkdir()
        source = {"name": "mine", "kind": "text", "type": "local", "paths": [str(self.data)], **fields}
        other = {"name": "other", "kind": "text", "type": "local", "paths": [str(tmp_path / "other.txt")]}
        (tmp_path / "other.txt").write_text("another source behind the one that grows")
        self.config.write_text(json.dumps({"threads": 1, "download": {"sources": [source, other]}}))
        self.folder = tmp_path / "run"

    def add(self, *numbers, word="document"):
        for number in numbers:
            (self.data / f"{number:03d}.jsonl").write_text(json.dumps({"text": f"{word} {number}"}) + "\n")

    def start(self, *flags, folder=None):
        flags = ["--config", str(self.config), "--run-dir", str(folder or self.folder), *flags]
        return in_process.run_script(self._monkeypatch, SCRIPT, *flags)

    def run(self, *flags, folder=None):
        folder = folder or self.folder
        assert self.start(*flags, folder=folder) == 0
        manifest = Manifest.read(folder / "01_download" / MANIFEST)
        shards = [entry.digest for name, entry in sorted(manifest.files.items()) if name.startswith("part-")]
        return shards[:-1], shards[-1], manifest

    def provenance(self):
        catalog = json.loads((self.folder / "01_download" / "sources.json").read_bytes())
        return catalog["sources"][0]["provenance"]


@pytest.fixture
def growing(tmp_path, monkeypatch):
    return GrowingRun(tmp_path, monkeypatch)


def test_ten_files_and_one_and_one_more_leave_every_older_shard_as_it_is(growing):
    growing.add(*range(10))
    first, other, _ = growing.run()
    assert len(first) == 1 and "borders" not in growing.provenance()
    growing.add(10)
    second, other_then, _ = growing.run()
    assert second[:1] == first and len(second) == 2 and other_then == other
    assert growing.provenance()["borders"] == [10]
    growing.add(11)
    third, other_then, manifest = growing.run()
    assert third[:2] == second and len(third) == 3 and other_then == other
    assert growing.provenance()["borders"] == [10, 11]
    assert growing.run("--force")[0] == third, "borders do not go with --force"
    whole, _, fresh = growing.run(folder=growing.folder.parent / "fresh")
    assert len(whole) == 1 and fresh.ledger == manifest.ledger
    growing.add(10, word="other words of")
    fourth, _, _ = growing.run()
    assert fourth[:1] == first and len(fourth) == 2 and growing.provenance()["borders"] == [10]


@pytest.mark.parametrize("kind", [{"kind": "eval"}, {"kind": "sft", "format": "alpaca"}])
def test_a_source_of_another_kind_that_grows_stays_one_file(tmp_path, monkeypatch, kind):
    growing = GrowingRun(tmp_path, monkeypatch, **kind)
    growing.add(*range(10))
    growing.run()
    growing.add(10)
    _, _, manifest = growing.run()
    assert [name for name in manifest.files if "mine" in name] == [f"{kind['kind']}/mine.jsonl"]
    lines = (growing.folder / "01_download" / kind["kind"] / "mine.jsonl").read_text().splitlines()
    assert len(lines) == 11 and "borders" not in growing.provenance()


def test_a_source_that_grew_and_is_refused_at_once_leaves_no_work(growing):
    growing.add(*range(10))
    growing.run()
    growing.add(10)
    good = growing.config.read_text()
    settings = json.loads(good)
    settings["download"]["sources"][0]["text_field"] = "words"
    growing.config.write_text(json.dumps(settings))
    assert growing.start() == 2
    assert not (growing.folder / "01_download" / "work").exists()
    growing.config.write_text(good)
    growing.run()
    assert growing.provenance()["borders"] == [10]


def test_work_that_a_power_cut_ended_goes_on_with_the_borders_it_began_with(growing, monkeypatch):
    growing.add(*range(10))
    first, _, _ = growing.run()
    growing.add(10)
    commit = Unit.commit

    class PowerCut(BaseException):
        pass

    def cut_in_the_second_unit(unit):
        if unit.key.startswith("text/mine/00001"):
            raise PowerCut
        commit(unit)

    monkeypatch.setattr(Unit, "commit", cut_in_the_second_unit)
    with pytest.raises(PowerCut):
        growing.run()
    monkeypatch.setattr(Unit, "commit", commit)
    (growing.folder / "01_download" / "sources.json").write_text("{}")
    shards, _, manifest = growing.run()
    assert shards[:1] == first and len(shards) == 2 and growing.provenance()["borders"] == [10]
    assert manifest.ledger["text"]["mine"]["kept"]["documents"] == 11
    assert any("sources.json or its manifest is missing or damaged" in note for note in manifest.notes)


def test_tasks_of_an_engine_see_the_same_units(growing, monkeypatch):
    growing.add(*range(10))
    first, _, _ = growing.run()
    growing.add(10)
    batches = in_process.take_the_place_of_ray(monkeypatch, tasks=2)
    shards, _, _ = growing.run(*in_process.FLAGS)
    assert shards[:1] == first and len(shards) == 2
    assert [batch.step for batch in batches] == ["read-text-mine"]
