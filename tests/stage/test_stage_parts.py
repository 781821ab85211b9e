"""Properties of the parts: journal, ledger, atomic files, digests, code version, progress, card, work folders."""

import errno
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from pipeline_lib.stage import (
    Ledger,
    StageFailure,
    atomic_path,
    file_digest,
    json_digest,
    link_or_copy,
    workspace,
    write_bytes_atomic,
    write_json_atomic,
)
from pipeline_lib.stage.card import ledger_lines, spell_value
from pipeline_lib.stage.code_version import SCRIPTS, code_files, code_version
from pipeline_lib.stage.digests import bytes_digest
from pipeline_lib.stage.journal import Journal
from pipeline_lib.stage.live_bar import live_bar
from pipeline_lib.stage.manifest import FileEntry, Manifest
from pipeline_lib.stage.progress import Pace, PlainProgress, RichProgress, duration, size
from pipeline_lib.stage.workspace import Workspace

RECORDS = st.lists(
    st.dictionaries(st.text(max_size=8), st.one_of(st.integers(), st.text(max_size=30), st.booleans())), max_size=8
)


@given(records=RECORDS, cut=st.integers(min_value=0, max_value=10_000))
@settings(max_examples=60, deadline=None)
def test_a_journal_torn_at_any_byte_gives_back_whole_records_only(tmp_path_factory, records, cut):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    journal = Journal(path)
    for record in records:
        journal.append(record)
    journal.close()
    data = path.read_bytes()
    path.write_bytes(data[: min(cut, len(data))])
    whole = data[:cut].count(b"\n")
    again = Journal(path)
    assert again.records == records[:whole]
    again.append({"after": "the tear"})
    again.close()
    assert Journal(path).records == [*records[:whole], {"after": "the tear"}]


@given(records=RECORDS.filter(bool), position=st.integers(min_value=0), flip=st.integers(min_value=1, max_value=255))
@settings(max_examples=60, deadline=None)
def test_a_journal_with_a_changed_byte_never_invents_a_record(tmp_path_factory, records, position, flip):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    journal = Journal(path)
    for record in records:
        journal.append(record)
    journal.close()
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= flip
    path.write_bytes(bytes(data))
    read = Journal(path).records
    assert read == records[: len(read)] and len(read) < len(records)


AMOUNTS = st.tuples(st.integers(0, 10**12), st.integers(0, 10**15), st.integers(0, 10**15))


@given(kept=AMOUNTS, dropped=st.dictionaries(st.sampled_from(["short", "duplicate", "language"]), AMOUNTS))
def test_a_ledger_balances_exactly_when_in_is_kept_plus_dropped(kept, dropped):
    ledger = Ledger()
    ledger.keep("text", "wiki", *kept)
    total = list(kept)
    for reason, amount in dropped.items():
        ledger.drop("text", "wiki", reason, *amount)
        total = [left + right for left, right in zip(total, amount, strict=True)]
    ledger.enter("text", "wiki", *total)
    ledger.check()
    assert Ledger.from_json(json.loads(json.dumps(ledger.to_json()))).to_json() == ledger.to_json()
    ledger.enter("text", "wiki", 0, 1, 0)
    with pytest.raises(StageFailure, match="text/wiki bytes"):
        ledger.check()


def test_ledgers_chain_by_document_and_by_bytes_where_both_counted():
    upstream, here = Ledger(), Ledger()
    upstream.keep("text", "wiki", 3, 100)
    upstream.keep("sft", "chat", 5)
    here.enter("text", "wiki", 3)
    here.check_chain(upstream, "01_download")
    here.enter("text", "wiki", 0, 99)
    with pytest.raises(StageFailure, match="kept 100 bytes, 99 came in"):
        here.check_chain(upstream, "01_download")
    lost = Ledger()
    lost.enter("text", "news", 3)
    with pytest.raises(StageFailure, match="text/news"):
        lost.check_chain(upstream, "01_download")


@given(st.binary(max_size=200_000))
@settings(max_examples=20, deadline=None)
def test_a_file_has_the_digest_of_its_bytes(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("digest") / "file"
    write_bytes_atomic(path, data)
    assert path.read_bytes() == data and file_digest(path) == bytes_digest(data)


def test_json_digest_ignores_key_order_and_refuses_nan():
    assert json_digest({"a": 1, "b": [2]}) == json_digest({"b": [2], "a": 1}) != json_digest({"a": 1, "b": [3]})
    with pytest.raises(ValueError, match="Out of range"):
        json_digest(float("nan"))


@pytest.mark.parametrize("durable", [True, False])
def test_an_exception_while_writing_leaves_the_old_file_and_no_temporary(tmp_path: Path, durable: bool):
    path = tmp_path / "model.safetensors"
    with atomic_path(path, durable) as temporary:
        temporary.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_path(path, durable) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["model.safetensors"]


def test_a_folder_can_be_replaced_atomically(tmp_path: Path):
    for content in ("one", "two"):
        with atomic_path(tmp_path / "model") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert os.listdir(tmp_path / "model") == ["two"]


@given(st.text(max_size=20), st.integers(0, 255))
@settings(max_examples=30, deadline=None)
def test_a_manifest_reads_back_whole_or_not_at_all(tmp_path_factory, word, position):
    path = tmp_path_factory.mktemp("manifest") / "manifest.json"
    manifest = Manifest(
        "01_download", {"seed": 1}, {"a": FileEntry(1, "xxh3:0")}, {}, {"word": word}, [], 0, {"seconds": 1}
    )
    manifest.write(path)
    assert Manifest.read(path) == manifest
    decisive = path.read_bytes().split(b'"run"')[0]
    damaged = bytearray(path.read_bytes())
    damaged[position % len(decisive)] ^= 1
    path.write_bytes(bytes(damaged))
    read = Manifest.read(path)
    assert read is None or read == manifest  # white space may change without changing what is said


def test_records_do_not_enter_the_outputs_digest():
    def make(digest: str) -> Manifest:
        files = {"a": FileEntry(1, "xxh3:0"), "t.txt": FileEntry(1, digest, True)}
        return Manifest("01_download", {}, files, {}, {}, [], 0)

    assert make("xxh3:1").outputs_digest == make("xxh3:2").outputs_digest


def test_code_version_follows_imports_and_changes_with_them(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text("def run():\n    from pipeline_lib.gates import verdicts\n    import dedup.minhash as m, json\n")
    names = {file.relative_to(SCRIPTS).as_posix() for file in code_files(script) if file.is_relative_to(SCRIPTS)}
    assert {"pipeline_lib/__init__.py", "pipeline_lib/gates/__init__.py", "dedup/__init__.py"} <= names
    before = code_version(script)
    script.write_text(script.read_text() + "# changed\n")
    assert code_version(script) != before


def test_durations_and_sizes_read_well():
    assert [duration(4.21), duration(200), duration(7500)] == ["4.2 s", "3 min 20 s", "2 h 05 min"]
    assert [size(0), size(999), size(1500), size(2.5e9), size(7e12)] == ["0 B", "999 B", "1.5 kB", "2.5 GB", "7.0 TB"]


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_units_that_were_finished_before_promise_no_early_end():
    clock = Clock()
    pace = Pace(100, clock)
    pace.skip(90)
    assert pace.seconds_left is None and pace.rate == 0
    clock.now = 8.0
    pace.advance(2)
    assert (pace.done, pace.rate, pace.seconds_left) == (92, 0.25, 32.0)
    clock.now = 20.0  # the time left runs down while a unit is being done
    assert pace.seconds_left == 20.0
    clock.now = 60.0
    assert pace.seconds_left == 0
    assert Pace(None, clock).seconds_left is None


def test_a_log_gets_a_line_every_ten_seconds(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    plain = PlainProgress(40, "writing", "chunks")
    plain.pace = Pace(40, clock)
    plain.skip(30)
    for _ in range(4):
        clock.now += 5.0
        plain.advance(1, "12.3 MB/s")
    lines = [
        "writing 32/40 chunks, 0.2/s, 40.0 s left, 12.3 MB/s",
        "writing 34/40 chunks, 0.2/s, 30.0 s left, 12.3 MB/s",
    ]
    assert capsys.readouterr().out.splitlines() == [f"  {line}" for line in lines]


def on_a_terminal(columns: int, label: str, text: str, total: int | None, done: int = 12) -> str:
    """Return the line that the live bar shows, 20 s after `done` of `total` units."""
    clock = Clock()
    screen = io.StringIO()
    console = Console(file=screen, width=columns, force_terminal=True, color_system=None, legacy_windows=False)
    pace = Pace(total, clock)
    bar = live_bar("chunks", console)
    task = RichProgress(bar, bar.add_task(label, total=total, text="", pace=pace), pace)
    clock.now = 20.0
    task.advance(done, text)
    console.print(bar.get_renderable())
    return screen.getvalue().rstrip("\n")


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("writing", "1,234.5 MB/s, 123,456 samples/s, 12.3x smaller"),
        ("hub/a-source-with-quite-a-long-name", "something quite long that nobody has to read to its very end"),
        ("reading chunks", ""),
    ],
)
def test_a_terminal_shows_count_and_time_left_whole(columns, label, text):
    line = on_a_terminal(columns, label, text, total=4_000)
    assert "12/4,000 chunks, 1:50:47 left" in line
    assert "\n" not in line and len(line) <= columns
    if columns == 200:
        assert label in line and text in line


def test_a_terminal_of_80_columns_shows_all_that_stage_03_says():
    line = on_a_terminal(80, "writing", "98.7 MB/s, 9,876 samples/s, 2.1x smaller", total=40)
    assert line.startswith("  writing ") and line.endswith(
        "12/40 chunks, 0:00:47 left 98.7 MB/s, 9,876 samples/s, 2.1x smaller"
    )


def test_a_bar_of_unknown_length_and_one_that_has_just_begun():
    assert "12 chunks" in on_a_terminal(80, "formatting", "", total=None)
    assert "0/40 chunks, -:--:-- left" in on_a_terminal(80, "writing", "", total=40, done=0)


def test_text_in_brackets_is_no_markup():
    assert "[bold] 7" in on_a_terminal(80, "[red]", "[bold] 7", total=40)


@pytest.mark.parametrize(
    ("value", "spelled"),
    [({"email": 1200, "ip": 3}, "email 1,200, ip 3"), ({}, "none"), ([], "none"), (0, "0"), (False, "false")],
)
def test_the_card_spells_a_result(value, spelled):
    assert spell_value(value) == spelled


def test_the_card_names_every_reason_of_a_drop():
    ledger = Ledger()
    ledger.enter("text", "web", documents=36, bytes=360)
    for place in range(8):
        ledger.drop("text", "web", f"reason {place}", documents=8 - place, bytes=10 * (8 - place))
    lines = [text for _, text in ledger_lines(ledger)]
    assert lines[0] == "in 36 documents, 360 B; kept nothing"
    assert lines[1] == "dropped, reason 0: 8 documents, 80 B" and len(lines) == 8
    assert lines[-1] == "dropped, others: reason 6 (2), reason 7 (1)"


def test_a_shared_file_has_two_names_and_neither_replaces_another_file(tmp_path, monkeypatch):
    source, second, third = (tmp_path / name for name in ("source", "second", "third"))
    source.write_text("all of it")
    link_or_copy(source, second)
    assert second.samefile(source)

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    link_or_copy(source, third)
    assert third.read_text() == "all of it" and not third.samefile(source)
    with pytest.raises(FileExistsError):
        link_or_copy(source, third)
    monkeypatch.undo()
    with pytest.raises(FileExistsError):
        link_or_copy(source, second)
    with pytest.raises(FileNotFoundError):
        link_or_copy(tmp_path / "nothing", tmp_path / "fourth")


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the kernel does not tell shared pages")
def test_memory_that_processes_share_counts_once_and_a_peak_that_is_over_is_remembered(scripts: Path):
    program = (
        "import os, sys, time\n"
        f"sys.path.insert(0, {str(scripts)!r})\n"
        "from pipeline_lib.stage.memory import PeakMemory, resident_bytes, tree_bytes\n"
        "shared = bytes(range(256)) * (100 << 12)\n"  # 100 MB
        "children = []\n"
        "for _ in range(3):\n"
        "    if not (child := os.fork()):\n"
        "        time.sleep(60)\n"
        "    children.append(child)\n"
        "peak = PeakMemory()\n"
        "time.sleep(0.6)\n"
        "own = bytes(range(256)) * (40 << 12)\n"
        "time.sleep(0.6)\n"
        "del own\n"
        "resident = resident_bytes()\n"
        "print(len(resident), sum(resident.values()) >> 20, tree_bytes(resident) >> 20)\n"
        "for child in children: os.kill(child, 9); os.waitpid(child, 0)\n"
        "print(peak.stop() >> 20)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    processes, resident, together, peak = map(int, done.stdout.split())
    assert processes == 4 and resident > 400 and 100 < together < 200
    assert together + 30 < peak < resident


def begin_training(stage_folder: Path, lr: float, fresh: bool = False) -> str:
    """Open the work folder of a start with this setting; return what was said about the work that lay there."""
    said: list[str] = []
    unfinished = Workspace(stage_folder, {"settings": {"lr": lr}})
    unfinished.open(fresh=fresh, keep_superseded=True, say=said.append)
    unfinished.journal.close()
    return " ".join(said)


def write_checkpoint(stage_folder: Path, step: int) -> None:
    path = stage_folder / "work" / "checkpoints" / f"step-{step:08d}" / "complete.json"
    path.parent.mkdir(parents=True)
    write_json_atomic(path, {"step": step})


def test_superseded_training_is_replaced_neither_by_other_training_nor_by_a_start_without_a_step(tmp_path):
    stage = tmp_path / "05_pretrain"
    assert begin_training(stage, 0.1) == ""
    write_checkpoint(stage, 500)
    assert f"--force does not continue was moved to {stage / 'superseded'};" in begin_training(stage, 0.1, fresh=True)
    (stage / "work" / "choices.json").write_text("{}")
    write_checkpoint(stage, 0)  # as an error before the first step leaves it
    assert begin_training(stage, 0.2).endswith("was discarded, nothing in it was finished")
    assert sorted(path.name for path in stage.iterdir()) == ["superseded", "work"]
    write_checkpoint(stage, 30)
    assert f"was moved to {stage / 'superseded-2'};" in begin_training(stage, 0.3)
    (stage / "work" / "journal.jsonl").write_bytes(b"a finished unit\n")
    assert f"was moved to {stage / 'superseded-3'};" in begin_training(stage, 0.3, fresh=True)
    steps = [path.parent.name for path in sorted(stage.glob("superseded*/checkpoints/*/complete.json"))]
    assert steps == ["step-00000500", "step-00000030"]


def test_reference_log_probabilities_of_a_long_pass_are_moved_aside_too(tmp_path):
    begin_training(tmp_path, 0.1)
    (tmp_path / "work" / "reference-train").mkdir()
    (tmp_path / "work" / "reference-train" / "00000000.parquet").write_bytes(b"")
    assert "was moved to" in begin_training(tmp_path, 0.2)


def test_work_is_there_whole_or_not_at_all_and_what_cannot_be_deleted_of_it_is_no_error(tmp_path, monkeypatch):
    begin_training(tmp_path, 0.1)
    work, seen = tmp_path / "work", []

    def fail_as_if_another_process_wrote_there(path: Path) -> None:
        seen.append((work.exists(), sorted(file.name for file in path.iterdir())))
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    with monkeypatch.context() as patch:
        patch.setattr(workspace, "remove", fail_as_if_another_process_wrote_there)
        assert "was discarded" in begin_training(tmp_path, 0.2)
        assert "was discarded" in begin_training(tmp_path, 0.3)
    assert seen == [(False, ["journal.jsonl", "state.json"])] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [".removed-1", ".removed-2", "work"]
    workspace.finish_publication(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["work"]
