"""The command line of dedup: every command, its exit codes, and a run that is killed or finds the disk full."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dedup_files

SCRIPT = Path(dedup_files.__file__)
UNGUARDED = ["--parameters", '{"max_removed_fraction": 1.0}']


def text(seed: int, tail: str = "") -> str:
    return " ".join(f"{seed}word{n}" for n in range(60)) + tail


@pytest.fixture
def shards(tmp_path) -> Path:
    """Two files: document 1 twice, an edited copy of it, and 400 others."""
    folder = tmp_path / "in"
    folder.mkdir()
    texts = [text(1), text(1), text(1, " edited"), *(text(n) for n in range(2, 402))]
    for number in range(2):
        part = texts[number::2]
        ids = [f"{number}-{n}" for n in range(len(part))]
        pq.write_table(pa.table({"id": ids, "text": part}), folder / f"part-{number}.parquet", row_group_size=20)
    return folder


def kept(folder: Path) -> dict[str, list[str]]:
    return {path.name: pq.read_table(path)["text"].to_pylist() for path in sorted(folder.glob("part-*.parquet"))}


def test_run_keeps_the_shards_and_writes_receipts(shards, tmp_path, capsys):
    out = tmp_path / "out"
    assert dedup_files.exit_code(["run", str(shards), str(out), "--max-ram", "4G", "--workers", "2"]) == 0
    assert "0 exact and 2 fuzzy duplicates, 401 documents stay" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["part-0.parquet", "part-1.parquet", "removed.parquet"]
    assert sum(map(len, kept(out).values())) == 401
    assert pq.read_table(out / "removed.parquet").num_rows == 2


@pytest.mark.parametrize("flags", [(), ("--engine", "local")])
def test_columns_of_other_names_decide_which_copy_stays(tmp_path, flags):
    (tmp_path / "in").mkdir()
    texts = [text(1), text(1, " edited")]
    table = pa.table({"key": ["a", "b"], "text": texts, "from": ["x", "y"], "score": [2.0, 1.0]})
    pq.write_table(table, tmp_path / "in" / "part-0.parquet")
    columns = ["--id-column", "key", "--source-column", "from", "--quality-column", "score"]
    assert dedup_files.exit_code(["run", str(tmp_path / "in"), str(tmp_path / "out"), *columns, *flags]) == 0
    assert pq.read_table(tmp_path / "out" / "part-0.parquet")["key"].to_pylist() == ["a"]  # the longer one is b


def test_what_a_run_wrote_is_input_of_the_next_and_never_lies_beside_the_shards_of_another(shards, tmp_path, capsys):
    out = tmp_path / "out"
    for input_folder, output in ((shards, out), (out, tmp_path / "again"), (shards, out)):
        assert dedup_files.exit_code(["run", str(input_folder), str(output)]) == 0
    assert dedup_files.exit_code(["index", "add", str(tmp_path / "index"), "a", str(out)]) == 0
    assert sum(map(len, kept(tmp_path / "again").values())) == 401
    (shards / "part-1.parquet").rename(shards / "part-2.parquet")
    capsys.readouterr()
    assert dedup_files.exit_code(["run", str(shards), str(out)]) == 2
    said = f"error: dedup: {out / 'part-1.parquet'} is there already and would stay beside the output"
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize("flags", [("--tasks", "4"), ("--engine-options", "{}")])
def test_flags_of_an_engine_without_one_are_refused(shards, tmp_path, capsys, flags):
    assert dedup_files.exit_code(["run", str(shards), str(tmp_path / "out"), *flags]) == 2
    assert f"{flags[0]} says how an engine works; give --engine too" in capsys.readouterr().err


def test_subtract_removes_what_is_known(shards, tmp_path):
    pq.write_table(pa.table({"id": ["k"], "text": [text(1)]}), tmp_path / "known.parquet")
    arguments = ["subtract", str(shards), str(tmp_path / "out"), "--known", str(tmp_path / "known.parquet")]
    assert dedup_files.exit_code(arguments) == 0
    assert sum(map(len, kept(tmp_path / "out").values())) == 400


def test_subtract_that_was_stopped_does_not_take_the_files_of_then_for_those_of_now(shards, tmp_path):
    for name, number in (("first", 1), ("second", 5)):
        pq.write_table(pa.table({"id": ["k"], "text": [text(number)]}), tmp_path / f"{name}.parquet")
    call = ["subtract", str(shards), str(tmp_path / "out"), "--known"]
    strict = ["--parameters", '{"max_removed_fraction": 0.001, "guard_minimum": 1}']
    assert dedup_files.exit_code([*call, str(tmp_path / "first.parquet"), *strict]) == 1
    assert dedup_files.exit_code([*call, str(tmp_path / "second.parquet")]) == 0
    left = {each for texts in kept(tmp_path / "out").values() for each in texts}
    assert text(1) in left and text(5) not in left


def test_what_cannot_be_read_is_one_line(shards, tmp_path, capsys):
    whole = (shards / "part-1.parquet").read_bytes()
    (shards / "part-1.parquet").write_bytes(whole[:200] + bytes(400) + whole[600:])
    assert dedup_files.exit_code(["run", str(shards), str(tmp_path / "out")]) == 2
    assert dedup_files.exit_code(["index", "forget", str(tmp_path / "nothing"), "x"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "part-1.parquet cannot be read from row" in said[0] and "is" in said[1]


def test_text_that_is_not_utf8_is_compared_and_previewed(tmp_path):
    (tmp_path / "in").mkdir()
    raw = pa.array([b"caf\xe9 " * 20, b"caf\xe9 " * 20], pa.large_binary())
    texts = pa.Array.from_buffers(pa.large_string(), 2, raw.buffers())
    pq.write_table(pa.table({"id": ["a", "b"], "text": texts}), tmp_path / "in" / "part-0.parquet")
    assert dedup_files.exit_code(["run", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    (receipt,) = pq.read_table(tmp_path / "out" / "removed.parquet").to_pylist()
    assert receipt["id"] == "b" and receipt["preview"].startswith("caf\ufffd")


def test_an_index_from_the_command_line(shards, tmp_path, capsys):
    index = str(tmp_path / "index")
    first, second = (str(shards / f"part-{n}.parquet") for n in range(2))
    assert dedup_files.exit_code(["index", "add", index, "one", first]) == 0
    assert dedup_files.exit_code(["index", "add", index, "two", second]) == 0
    assert dedup_files.exit_code(["index", "export", index, "two", str(tmp_path / "out")]) == 0
    assert dedup_files.exit_code(["index", "undo", index, "one"]) == 0
    assert dedup_files.exit_code(["index", "show", index]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "two: 201 documents, 0 removed"
    assert pq.read_table(tmp_path / "out" / "part-1.parquet").num_rows == 200


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "{data}/part-0.parquet", "{data}"],
        ["run", "{data}/part-0.parquet", "{data}", "--engine", "local"],
        ["subtract", "{data}/part-0.parquet", "{data}", "--known", "{other}"],
        ["subtract", "{data}/part-0.parquet", "{other}", "--known", "{other}/part-0.parquet"],
        ["index", "export", "{index}", "one", "{data}"],
        ["index", "export", "{index}", "one", "{other}"],
    ],
)
def test_a_file_that_is_read_is_never_overwritten(shards, tmp_path, capsys, arguments):
    other, index = tmp_path / "other", tmp_path / "index"
    other.mkdir()
    for file in shards.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    for name, folder in (("one", shards), ("two", other)):
        assert dedup_files.exit_code(["index", "add", str(index), name, str(folder), *UNGUARDED]) == 0
    before = {path: path.read_bytes() for folder in (shards, other) for path in folder.iterdir()}
    given = [each.format(data=shards, other=other, index=index) for each in arguments]
    assert dedup_files.exit_code(given) == 2
    error = capsys.readouterr().err
    assert "part-0.parquet, which is read; choose another folder" in error and error.count("\n") == 1
    assert {path: path.read_bytes() for folder in (shards, other) for path in folder.iterdir()} == before


def test_a_second_process_is_refused(shards, tmp_path, capsys):
    program = "import sys; sys.path.insert(0, sys.argv[1]); from pipeline_lib.stage.lock import *"
    program += "; lock = StageLock(Path(sys.argv[2]) / LOCK, print); print('held', flush=True); input()"
    held = [sys.executable, "-c", program, str(SCRIPT.parent), str(tmp_path / "out" / ".dedup-work")]
    known = ["--known", str(shards / "part-0.parquet")]
    with subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        for command in (["run"], ["run", "--engine", "local"], ["subtract", *known]):
            assert dedup_files.exit_code([*command, str(shards), str(tmp_path / "out")]) == 2
            assert f"is being written by process {holder.pid}" in capsys.readouterr().err
        holder.communicate("\n")
    assert not list((tmp_path / "out").glob("*.parquet"))


@pytest.mark.slow
def test_two_sources_added_at_once_are_both_there(shards, tmp_path):
    index = str(tmp_path / "index")
    first, second = (str(shards / f"part-{n}.parquet") for n in range(2))
    assert dedup_files.exit_code(["index", "add", index, "one", first]) == 0
    adding = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), "index", "add", index, name, second, *UNGUARDED], stderr=subprocess.PIPE
        )
        for name in ("two", "three")
    ]
    said = {process.returncode: err for process in adding for err in [process.communicate()[1]]}
    for name in ("two", "three") if 2 in said else ():  # the later one found the index locked: it comes again
        assert b"is being written by process" in said[2]
        dedup_files.exit_code(["index", "add", index, name, second, *UNGUARDED])
    sources = json.loads((tmp_path / "index" / "index.json").read_text())["sources"]
    assert sorted(source["name"] for source in sources) == ["one", "three", "two"]


@pytest.mark.parametrize("arguments", [["show"], ["undo", "one"], ["forget", "one"], ["export", "one", "out"]])
def test_the_index_of_something_else_is_one_line(tmp_path, capsys, arguments):
    (tmp_path / "index.json").write_text('{"format": "packed-cache", "version": 2, "chunks": []}')
    action, *rest = arguments
    assert dedup_files.exit_code(["index", action, str(tmp_path), *rest]) == 2
    error = capsys.readouterr().err
    assert "is no dedup index" in error and "delete" not in error and error.count("\n") == 1


SPILLS = """
import sys
sys.path.insert(0, sys.argv[1])
import dedup.external_sort, dedup_files
dedup.external_sort.BYTES_PER_RECORD = 1 << 60  # as if there were no room for more than the least run
sys.exit(dedup_files.exit_code(sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_disk_that_is_full_during_a_spill_is_one_line_and_the_next_start_finishes(tmp_path):
    """The limit is larger than every sketch and smaller than a run of the sort."""
    (tmp_path / "in").mkdir()
    for number in range(70):
        texts = [f"text {number} number {n % 55}" for n in range(60)]
        pq.write_table(pa.table({"text": texts}), tmp_path / "in" / f"part-{number:02d}.parquet")
    command = ["run", str(tmp_path / "in"), str(tmp_path / "out"), "--workers", "1"]
    assert dedup_files.exit_code([*command[:2], str(tmp_path / "reference")]) == 0  # which compiles what there is
    small = lambda: (  # noqa: E731
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY)),
    )
    started = [sys.executable, "-c", SPILLS, str(SCRIPT.parent), *command]
    stopped = subprocess.run(started, capture_output=True, text=True, preexec_fn=small)
    work = tmp_path / "out" / ".dedup-work"
    assert len(list((work / "sketches").glob("*.json"))) == 70 and list((work / "runs").glob("digest-*.run"))
    assert stopped.returncode == 1 and stopped.stderr.count("\n") == 1, stopped.stderr
    assert stopped.stderr.startswith("error: disk full while writing") and "start again" in stopped.stderr
    assert subprocess.run(started, capture_output=True).returncode == 0
    assert kept(tmp_path / "out") == kept(tmp_path / "reference") and not work.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parameters", "{"], "cannot be used"),
        (["--parameters", '{"jacard": 1}'], "jacard"),
        (["--max-ram", "lots"], "no memory size"),
        (["--max-ram", "10M"], "give at least"),
        (["--parameters", '{"exact_sources": "web"}'], "must be a list of texts"),
        (["--parameters", '{"rows": 7.5}'], "must be a whole number"),
        (["--engine", "local", "--engine-options", '{"partition": "cpu"}'], "no option 'partition' to set"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_two(shards, tmp_path, capsys, arguments, message):
    assert dedup_files.exit_code(["run", str(shards), str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def start(shards: Path, out: Path, **options) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), "run", str(shards), str(out), "--workers", "1"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.slow
def test_a_full_disk_stops_cleanly_and_the_next_start_finishes(shards, tmp_path):
    reference = tmp_path / "reference"
    assert dedup_files.exit_code(["run", str(shards), str(reference)]) == 0
    small = lambda: (  # noqa: E731
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY)),
    )
    out = tmp_path / "out"
    stopped = start(shards, out, preexec_fn=small)
    error = stopped.communicate()[1]
    assert stopped.returncode == 1 and "file size limit" in error and "Traceback" not in error
    assert list(out.glob("*.parquet")) == []
    assert dedup_files.exit_code(["run", str(shards), str(out)]) == 0
    assert kept(out) == kept(reference)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_keeps_the_same_documents(shards, tmp_path):
    reference, out = tmp_path / "reference", tmp_path / "out"
    assert dedup_files.exit_code(["run", str(shards), str(reference)]) == 0
    killed = start(shards, out)
    work = out / ".dedup-work"
    while killed.poll() is None and not (work / "bands").is_dir():
        time.sleep(0.002)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL, "it was faster than the kill"
    sketches = {path: path.stat().st_mtime_ns for path in (work / "sketches").iterdir()}
    assert sketches and dedup_files.exit_code(["run", str(shards), str(out)]) == 0
    assert kept(out) == kept(reference)
    assert pq.read_table(out / "removed.parquet").equals(pq.read_table(reference / "removed.parquet"))
    assert not work.exists()
