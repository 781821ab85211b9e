"""A folder gives every file below it once, through links too, and a source says what it leaves out."""

import bz2
import json
import os
import subprocess
import sys

import pytest
import yaml

from pipeline_lib.sources.folders import files_below
from pipeline_lib.sources.local import LocalSource
from pipeline_lib.stage import UserError
from pipeline_lib.stage.manifest import MANIFEST, Manifest


def names(folder):
    return [file.relative_to(folder).as_posix() for file in files_below(folder)]


def test_files_behind_links_are_found_and_each_folder_is_entered_once(tmp_path):
    data, outside = tmp_path / "data", tmp_path / "outside"
    for file in (data / "z/own.txt", data / "b.txt", outside / "deep/far.txt", outside / ".git/hidden.txt"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    (data / "a").symlink_to(data / "z")  # sorts first, but the folder has a name of its own here
    (data / "m").symlink_to(outside)
    (data / "n").symlink_to(outside)
    (data / "z/up").symlink_to(data)
    (outside / "round").symlink_to(data / "n")
    (data / "self").symlink_to(data / "self")
    assert names(data) == ["b.txt", "m/deep/far.txt", "self", "z/own.txt"]


def test_a_tree_without_links_is_listed_as_pathlib_lists_it(tmp_path):
    for name in ("b/x.txt", "b.txt", "b-c/x", "B/a.txt", "a/b/c/d.md", "a/b.md", "a/.b/hidden.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / ".hidden.txt").write_text("x")
    every = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    visible = [path.as_posix() for path in every if not any(part.startswith(".") for part in path.parts)]
    assert names(tmp_path) == visible and len(visible) == 6


def test_a_folder_that_cannot_be_listed_is_named_and_not_passed_over(tmp_path, monkeypatch):
    (tmp_path / "open").mkdir()
    (tmp_path / "closed").mkdir()
    list_folder = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return list_folder(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"the folder .*/closed cannot be listed \(Permission denied\)"):
        files_below(tmp_path)


def test_a_source_says_what_it_leaves_out_of_folders_and_globs(quick, bench, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.tsv").write_text("x")
    for name in ("a.txt", "b.tsv.gz", "LICENSE", ".hidden.tsv"):
        (tmp_path / name).write_text("x")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nothing")
    notes = []
    noting = type(bench)(bench.scratch, note=notes.append)
    paths = [str(tmp_path), str(tmp_path / "*.t*")]
    source = LocalSource(quick(type="local", paths=paths), noting)
    assert len(source.fingerprint()["files"]) == 1
    kinds = ".tsv 3, no suffix 1, .tsv.gz 1, links to nothing 1"
    assert notes == [f"source sample: 6 files left out ({kinds}), first {tmp_path}/0.tsv"]
    LocalSource(quick(type="local", paths=[str(tmp_path / "a.txt")]), noting)
    assert len(notes) == 1


@pytest.mark.parametrize("pattern", ["data/*", "data/**", "data/**/*", "dat*", "data/[a-z2]*"])
def test_folders_that_a_glob_matches_give_the_files_of_the_folder_each_once(quick, bench, tmp_path, pattern):
    data, outside = tmp_path / "data", tmp_path / "outside"
    visible = ["2019/b.jsonl", "2019/deep/c.jsonl", "2019/log.tsv", "a.jsonl", "z.parquet/d.jsonl", "z.tsv"]
    for file in (*(data / name for name in (*visible, "2019/.hidden.jsonl", ".git/x.jsonl")), outside / "far.jsonl"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"text": str(file)}) + "\n")
    (data / "again").symlink_to(data / "2019")  # sorts between the others, and gives nothing that they do not
    (data / "m").symlink_to(outside)
    (data / "n").symlink_to(outside)
    if "**" not in pattern:  # there the glob itself follows the link, as often as the system lets it
        (data / "up").symlink_to(data)
    notes = []
    noting = type(bench)(bench.scratch, note=notes.append)
    [of_the_glob, of_the_folder] = [
        LocalSource(quick(type="local", paths=[str(tmp_path / path)]), noting) for path in (pattern, "data")
    ]
    read = [entry["path"] for entry in of_the_glob.fingerprint()["files"]]
    readable = sorted(data / name for name in (*visible, "m/far.jsonl") if not name.endswith(".tsv"))
    assert read == [file.as_posix() for file in readable]
    assert of_the_glob.fingerprint() == of_the_folder.fingerprint()
    assert notes == [f"source sample: 2 files left out (.tsv 2), first {data}/2019/log.tsv"] * 2


def test_a_hidden_file_or_folder_is_read_when_the_glob_asks_for_it(quick, tmp_path):
    for name in (".a.jsonl", ".b/c.jsonl", ".b/.d.jsonl", "e.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    source = LocalSource(quick(type="local", paths=[str(tmp_path / ".*")]))
    assert [entry["path"] for entry in source.fingerprint()["files"]] == [
        f"{tmp_path}/{name}" for name in (".a.jsonl", ".b/c.jsonl")
    ]


def test_the_card_tells_what_was_left_out_in_words_that_are_utf8(tmp_path, scripts):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.jsonl").write_text(json.dumps({"text": "good words"}) + "\n")
    (data / "b.jsonl.bz2").write_bytes(bz2.compress(json.dumps({"text": "other words"}).encode()))
    (data / os.fsdecode(b"caf\xe9.\xe9")).write_text("x")
    config = tmp_path / "config.yaml"
    source = {"name": "mine", "kind": "text", "type": "local", "paths": [str(data)]}
    config.write_text(yaml.safe_dump({"download": {"sources": [source]}}))
    command = [sys.executable, scripts / "01_download_data.py", "--config", config, "--run-dir", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    line = rf"source mine: 1 files left out (.\xe9 1), first {data}/caf\xe9.\xe9"
    assert line in done.stdout
    manifest = Manifest.read(tmp_path / "run" / "01_download" / MANIFEST)
    assert line in manifest.notes and manifest.ledger["text"]["mine"]["kept"]["documents"] == 2
