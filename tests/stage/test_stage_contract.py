"""The promises of the stage contract, kept by a real process: killed, interrupted, damaged, locked, disk full."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline_lib.stage import workspace
from pipeline_lib.stage.atomic import remove
from pipeline_lib.stage.system_errors import spell_system_error, tells_of_a_full_disk

TOY = Path(__file__).with_name("toy_stage.py")


class Toy:
    """Runs the toy stage in a folder of its own."""

    def __init__(self, folder: Path, scripts: Path):
        self.config = folder / "toy.yaml"
        self.config.write_text("run: toy\n")
        self.run_folder = folder / "run"
        self.folder = self.run_folder / "01_download"
        self.environment = {**os.environ, "TOY_SCRIPTS": str(scripts)}

    def start(self, *flags: str, own_group: bool = False, **knobs: str) -> subprocess.Popen:
        command = [sys.executable, str(TOY), "-c", str(self.config), "--run-dir", str(self.run_folder), *flags]
        return subprocess.Popen(
            command,
            env={**self.environment, **knobs},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.config.parent,
            start_new_session=own_group,
        )

    def run(self, *flags: str, **knobs: str) -> tuple[int, str, str]:
        process = self.start(*flags, **knobs)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def manifest(self) -> dict:
        return json.loads((self.folder / "manifest.json").read_text())

    def wait_for_unit(self, count: int) -> None:
        journal = self.folder / "work" / "journal.jsonl"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if journal.exists() and journal.read_bytes().count(b"\n") >= count:
                return
            time.sleep(0.005)
        raise TimeoutError("the toy stage made no progress")

    def wait_inside_unit(self, number: int) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if any((self.folder / "work").rglob(f"number-{number:03d}.txt*")):
                return
            time.sleep(0.005)
        raise TimeoutError(f"the toy stage did not begin number {number}")


@pytest.fixture
def toy(tmp_path: Path, scripts: Path) -> Toy:
    return Toy(tmp_path, scripts)


@pytest.fixture
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, scripts: Path) -> dict:
    other = Toy(tmp_path_factory.mktemp("uninterrupted"), scripts)
    assert other.run()[0] == 0
    return other.manifest()


def test_second_start_is_up_to_date(toy: Toy):
    assert toy.run()[0] == 0
    code, out, _ = toy.run()
    assert code == 0 and "up to date" in out and "squaring" not in out


def test_card_tells_in_out_time_and_next_command(toy: Toy):
    _, out, _ = toy.run()
    assert "in 12 documents, 60 B; kept 6 documents, 36 B" in out
    assert "odd one out: 6 documents, 24 B" in out
    assert "peak memory" in out and "python scripts/02_clean_deduplicate.py" in out


@pytest.mark.parametrize("after_units", [1, 3, 5])
def test_killed_while_writing_resumes_to_identical_files(toy: Toy, uninterrupted: dict, after_units: int):
    process = toy.start(TOY_SLEEP="0.05")
    toy.wait_for_unit(after_units)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (toy.folder / "manifest.json").exists(), "a killed stage must not look finished"
    code, out, _ = toy.run()
    assert code == 0 and "took over the lock of process" in out and "were finished before" in out
    ours, theirs = toy.manifest(), uninterrupted
    assert ours["outputs_digest"] == theirs["outputs_digest"]
    assert ours["ledger"] == theirs["ledger"] and ours["result"] == theirs["result"]
    assert not (toy.folder / "work").exists()


def test_killed_many_times_at_arbitrary_instants_resumes_to_identical_files(toy: Toy, uninterrupted: dict):
    for delay in (0.16, 0.2, 0.24, 0.28, 0.33, 0.4):
        process = toy.start(TOY_SLEEP="0.04")
        time.sleep(delay)
        process.kill()
        process.wait()
    assert toy.run()[0] == 0
    assert toy.manifest()["outputs_digest"] == uninterrupted["outputs_digest"]
    assert toy.manifest()["ledger"] == uninterrupted["ledger"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_unit_and_names_the_command_that_continues(toy: Toy, number: int, code: int):
    process = toy.start(TOY_SLEEP="0.2")
    toy.wait_inside_unit(1)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert "continue with: python scripts/01_download_data.py --config" in out
    before = (toy.folder / "work" / "journal.jsonl").read_bytes().count(b"\n")
    assert before >= 2, "the unit in hand must be finished, not thrown away"
    code, out, _ = toy.run()
    assert code == 0 and f"{before} of 6" in out
    time_line = next(line for line in out.splitlines() if line.startswith("  time "))
    assert " s in this start, which went on with earlier work, peak memory " in time_line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_process_group_is_an_interruption_too(toy: Toy, uninterrupted: dict, number: int):
    """GNU timeout and systemd send it to everyone; that it ends the workers is no sign of too little memory."""
    process = toy.start(own_group=True, TOY_WORKERS="2", TOY_WORK="0.5")
    toy.wait_for_unit(2)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number, out + err
    assert "continue with: python scripts/01_download_data.py --config" in out and not err
    code, out, _ = toy.run(TOY_WORKERS="2")
    assert code == 0 and "were finished before" in out
    assert toy.manifest()["outputs_digest"] == uninterrupted["outputs_digest"]


def test_a_worker_that_is_killed_without_a_signal_to_the_stage_is_a_failure(toy: Toy):
    code, out, err = toy.run(TOY_WORKERS="2", TOY_BROKEN="lost worker")
    assert code == 1 and "probably because memory ran out" in err and "continue with" not in out


def test_a_second_writer_is_refused_and_told_who_holds_the_lock(toy: Toy):
    first = toy.start(TOY_SLEEP="1.5")
    toy.wait_for_unit(1)
    code, _, err = toy.run()
    first.kill()
    first.communicate()
    assert code == 2 and f"is being written by process {first.pid}" in err


def test_unbalanced_ledger_fails_and_publishes_nothing(toy: Toy):
    code, _, err = toy.run(TOY_BROKEN="unbalanced")
    assert code == 1 and "ledger does not balance" in err and "text/numbers documents" in err
    assert not (toy.folder / "manifest.json").exists()


def test_failed_rerun_leaves_the_published_outputs_valid(toy: Toy):
    assert toy.run()[0] == 0
    before = toy.manifest()
    code, _, _ = toy.run("--force", TOY_BROKEN="failure")
    assert code == 1
    assert toy.manifest() == before
    code, out, _ = toy.run()
    assert code == 0 and "up to date" in out


@pytest.mark.parametrize(
    ("fault", "code", "text"),
    [
        ("user", 2, "numbers.txt:3 is not a number; put a number there"),
        ("failure", 1, "cleaning removed everything"),
    ],
)
def test_mistakes_are_one_line_without_traceback(toy: Toy, fault: str, code: int, text: str):
    returned, out, err = toy.run(TOY_BROKEN=fault)
    assert returned == code and text in err
    assert err.count("\n") == 1 and "Traceback" not in out + err


def test_an_input_refused_at_once_leaves_no_work_behind_and_finished_units_stay(toy: Toy):
    assert toy.run()[0] == 0
    before = toy.manifest()
    assert toy.run("--force", TOY_BROKEN="user")[0] == 2
    assert not (toy.folder / "work").exists() and toy.manifest() == before
    assert toy.run("--force", TOY_BROKEN="failure")[0] == 1
    assert (toy.folder / "work" / "journal.jsonl").read_bytes().count(b"\n") == 2


def test_a_defect_is_exit_1_with_its_traceback_in_the_log(toy: Toy):
    code, _, err = toy.run(TOY_BROKEN="crash")
    assert code == 1 and "log.txt" in err
    assert "RuntimeError: a defect" in (toy.folder / "log.txt").read_text()
    code, out, _ = toy.run()
    assert code == 0 and "2 of 6" in out, "units finished before the crash are kept"


@pytest.mark.parametrize("fault", ["memory", "GPU memory"])
def test_memory_that_runs_out_in_a_library_is_one_line_with_its_traceback_in_the_log(toy: Toy, fault: str):
    code, out, err = toy.run(TOY_BROKEN=fault)
    assert code == 1 and err.startswith("error: out of memory: use smaller batches") and err.count("\n") == 1
    assert "Traceback" not in out and "to allocate" in (toy.folder / "log.txt").read_text()
    code, out, err = toy.run("--plan", TOY_BROKEN=fault)
    assert code == 1 and err.startswith("error: out of memory: ") and err.count("\n") == 1
    code, out, _ = toy.run()
    assert code == 0 and "2 of 6" in out, "units finished before are kept"


def test_a_damaged_output_is_noticed_and_made_again(toy: Toy):
    assert toy.run()[0] == 0
    digest = toy.manifest()["outputs_digest"]
    victim = toy.folder / "squares" / "number-003.txt"
    data = bytearray(victim.read_bytes())
    data[10] ^= 1
    victim.write_bytes(bytes(data))
    code, out, _ = toy.run()
    assert code == 0 and "missing or damaged, first squares/number-003.txt" in out
    assert toy.manifest()["outputs_digest"] == digest


def test_touching_an_output_does_not_rerun(toy: Toy):
    assert toy.run()[0] == 0
    os.utime(toy.folder / "squares" / "number-003.txt", (1, 1))
    assert "up to date" in toy.run()[1]


def test_a_tampered_manifest_counts_as_unfinished(toy: Toy):
    assert toy.run()[0] == 0
    path = toy.folder / "manifest.json"
    path.write_text(path.read_text().replace('"total": 55', '"total": 56'))
    code, out, _ = toy.run()
    assert code == 0 and "its manifest is damaged" in out


def test_changed_seed_and_changed_data_rerun_and_say_why(toy: Toy, tmp_path: Path):
    listing = tmp_path / "listing"
    listing.write_text("one")
    assert toy.run(TOY_DATA=str(listing))[0] == 0
    assert "seed changed: 42 -> 7" in toy.run("--seed", "7", TOY_DATA=str(listing))[1]
    listing.write_text("two")
    assert "data changed" in toy.run("--seed", "7", TOY_DATA=str(listing))[1]


def test_fewer_outputs_remove_the_old_ones(toy: Toy):
    assert toy.run()[0] == 0
    assert toy.run("--force", TOY_UNITS="2")[0] == 0
    assert sorted(path.name for path in (toy.folder / "squares").iterdir()) == ["number-000.txt", "number-001.txt"]


def test_interrupted_publication_is_completed_by_the_next_start(toy: Toy):
    """Rebuild, by hand, the state that a kill between two renames leaves."""
    assert toy.run()[0] == 0
    work = toy.folder / "work"
    (work / "squares").mkdir(parents=True)
    for name in ("number-004.txt", "number-005.txt"):
        os.replace(toy.folder / "squares" / name, work / "squares" / name)
    os.replace(toy.folder / "manifest.json", work / "manifest.json")
    code, out, _ = toy.run()
    assert code == 0 and "finished moving its outputs into place" in out and "up to date" in out
    assert not work.exists() and (toy.folder / "squares" / "number-005.txt").exists()


def test_failing_exit_code_is_given_again_when_up_to_date(toy: Toy):
    assert toy.run(TOY_BROKEN="exit1")[0] == 1
    code, out, _ = toy.run(TOY_BROKEN="exit1")
    assert code == 1 and "up to date" in out


def test_plan_says_what_would_be_done_and_does_nothing(toy: Toy):
    code, out, _ = toy.run("--plan")
    assert code == 0 and "would run: it has not finished before" in out
    assert not toy.run_folder.exists()


def test_a_reader_who_leaves_does_not_end_the_work(toy: Toy):
    """As in `... | head -1`, or a terminal that is closed: the stage finishes, and log.txt has every word."""
    process = toy.start(TOY_SLEEP="0.1")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 0, process.stderr.read()
    assert (toy.folder / "manifest.json").exists() and "kept" in (toy.folder / "log.txt").read_text()


def test_an_array_that_a_full_disk_cut_short_is_told_as_such(tmp_path: Path):
    """numpy's own error, from the real device that is always full; it carries no errno."""
    with pytest.raises(OSError) as caught, open("/dev/full", "wb", buffering=0) as full:
        np.zeros(1 << 20, np.uint8).tofile(full)
    assert spell_system_error(caught.value).startswith("disk full while writing")


def test_a_full_disk_behind_a_librarys_own_error_is_found():
    wrapped = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert tells_of_a_full_disk(wrapped) and not tells_of_a_full_disk(RuntimeError("shape mismatch"))
    assert tells_of_a_full_disk(OSError("Not enough free space to write 4096 bytes after offset 0"))  # numpy's tofile
    outer = ValueError("could not save")
    outer.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert tells_of_a_full_disk(outer)


def test_a_file_size_limit_is_one_clear_line(toy: Toy):
    """The kernel refuses every write beyond the limit, as it does for a user with `ulimit -f`."""
    limited = f"ulimit -f 0; exec {sys.executable} {TOY} -c {toy.config} --run-dir {toy.run_folder}"
    done = subprocess.run(["bash", "-c", limited], env=toy.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1 and "file size limit" in done.stderr


def test_other_refusals_of_the_system_are_one_line_too():
    refused = PermissionError(errno.EACCES, "Permission denied", "/data/a")
    assert spell_system_error(refused).startswith("the system refused (Permission denied: /data/a)")


def test_disk_full_is_one_clear_line_and_nothing_is_half_written(toy: Toy):
    """The third commit meets the error that the kernel gives when the disk is full."""
    code = (
        "import errno, pathlib, runpy, sys\n"
        f"sys.argv = ['toy', '-c', {str(toy.config)!r}, '--run-dir', {str(toy.run_folder)!r}]\n"
        f"sys.path.insert(0, {toy.environment['TOY_SCRIPTS']!r})\n"
        "import pipeline_lib.stage.stage as module\n"
        "real, calls = module.commit, []\n"
        "def full(temporary, path):\n"
        "    calls.append(path)\n"
        "    if len(calls) == 3:\n"
        "        raise OSError(errno.ENOSPC, 'No space left on device', str(path))\n"
        "    real(temporary, path)\n"
        "module.commit = full\n"
        f"runpy.run_path({str(TOY)!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=toy.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "disk full" in done.stderr and "Traceback" not in done.stderr
    assert not list(toy.folder.rglob(".tmp-*"))
    assert "2 of 6" in toy.run()[1]


def test_a_plan_whose_probe_fails_is_a_failure(toy: Toy):
    code, out, _ = toy.run("--plan")
    assert code == 0 and "cost    about 1.0 s" in out
    code, out, err = toy.run("--plan", TOY_BROKEN="probe")
    assert code == 1 and err == "" and "cost    the probe failed: no number could be squared" in out
    assert not toy.folder.exists()


@pytest.mark.slow
def test_an_interrupted_forced_start_is_continued_and_not_taken_for_up_to_date(toy: Toy):
    assert toy.run()[0] == 0
    first = toy.manifest()
    process = toy.start("--force", TOY_SLEEP="0.2")
    toy.wait_for_unit(2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert "would continue unfinished work: a start with --force has not finished" in toy.run("--plan")[1]
    code, out, err = toy.run()
    assert code == 0, err
    assert "(a start with --force has not finished)" in out and "were finished before" in out
    assert toy.manifest()["outputs_digest"] == first["outputs_digest"] and toy.manifest()["run"]["resumed"]
    assert "up to date" in toy.run()[1]


@pytest.mark.slow
def test_a_kill_while_the_work_of_a_forced_start_is_removed_leaves_a_finished_stage(toy: Toy, monkeypatch):
    """Rebuild, by hand, the state before the last lines of a publication, and end in the midst of them."""
    assert toy.run()[0] == 0
    process = toy.start("--force", TOY_SLEEP="0.2")
    toy.wait_for_unit(2)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)
    state = (toy.folder / "work" / "state.json").read_bytes()
    assert b'"forced": true' in state and toy.run()[0] == 0
    work = toy.folder / "work"
    work.mkdir()
    (work / "state.json").write_bytes(state)
    os.replace(toy.folder / "manifest.json", work / "manifest.json")

    def remove_half(path: Path) -> None:
        if path.is_dir():
            (path / "manifest.json").unlink()
            raise KeyboardInterrupt
        remove(path)

    monkeypatch.setattr(workspace, "remove", remove_half)
    with pytest.raises(KeyboardInterrupt):
        workspace.finish_publication(toy.folder)
    assert not work.exists() and len(list(toy.folder.glob(".removed-*"))) == 1
    assert toy.run()[1].strip().endswith("up to date")
    assert not list(toy.folder.glob(".removed-*"))


def test_force_begins_anew_even_over_its_own_unfinished_work_and_says_so(toy: Toy):
    process = toy.start("--force", TOY_SLEEP="0.2")
    toy.wait_for_unit(2)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)
    code, out, _ = toy.run("--force")
    assert code == 0 and "unfinished work that --force does not continue was discarded" in out
    assert "were finished before" not in out


@pytest.mark.slow
def test_a_restart_by_torchrun_continues_what_force_began_instead_of_beginning_anew(toy: Toy):
    """torchrun repeats the command line, --force included; a failure must not leave "up to date" behind for it."""
    assert toy.run()[0] == 0
    restarts = {"TORCHELASTIC_MAX_RESTARTS": "1"}
    assert toy.run("--force", TOY_BROKEN="failure", TORCHELASTIC_RESTART_COUNT="0", **restarts)[0] == 1
    code, out, err = toy.run("--force", TORCHELASTIC_RESTART_COUNT="1", **restarts)
    assert code == 0, err
    assert "restart 1 of torchrun; --force counted at the first start only" in out
    assert "2 of 6 numbers were finished before, continuing" in out
    code, out, _ = toy.run("--force", TORCHELASTIC_RESTART_COUNT="1", **restarts)
    assert code == 0 and out.strip().endswith("up to date")


@pytest.mark.slow
def test_the_notes_of_interrupted_starts_are_on_the_card_of_the_one_that_finishes_each_once(toy: Toy):
    for units, note in ((1, "slow mode"), (3, "another number format")):
        process = toy.start(TOY_SLEEP="0.1", TOY_NOTE=note, TOY_PASSING_NOTE=f"{units} of them now")
        toy.wait_for_unit(units)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
    code, out, _ = toy.run(TOY_NOTE="slow mode", TOY_PASSING_NOTE="all of them now")
    assert code == 0 and out.count("note: slow mode") == 1 and "note         another number format" in out
    assert toy.manifest()["notes"] == ["slow mode", "another number format", "all of them now"]
    assert toy.run("--force")[0] == 0
    assert toy.manifest()["notes"] == []


def test_an_input_refused_after_a_note_leaves_no_work_behind(toy: Toy):
    assert toy.run(TOY_NOTE="slow mode", TOY_BROKEN="user")[0] == 2
    assert not (toy.folder / "work").exists()


@pytest.mark.parametrize("script", ["05_pretrain.py", "12_check_gates.py"])
def test_a_stage_that_is_refused_at_once_leaves_no_folder(tmp_path: Path, scripts: Path, script: str):
    command = [sys.executable, str(scripts / script), "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "is missing; make it with" in done.stderr
    assert not (tmp_path / "run").exists()
    (tmp_path / "run" / "other").mkdir(parents=True)
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 2
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["other"]


def test_a_refusal_while_working_leaves_nothing_of_a_first_start_and_all_of_an_earlier_one(toy: Toy):
    assert toy.run(TOY_BROKEN="user")[0] == 2
    assert not toy.run_folder.exists()
    assert toy.run(TOY_BROKEN="failure", TOY_UNITS="2")[0] == 0
    before = sorted(path.name for path in toy.folder.iterdir())
    assert toy.run("--force", TOY_BROKEN="user")[0] == 2
    assert sorted(path.name for path in toy.folder.iterdir()) == before
    assert "squares numbers (--force was given)" in (toy.folder / "log.txt").read_text()


def test_a_stage_that_is_refused_at_once_leaves_a_run_folder_that_was_there(toy: Toy):
    toy.run_folder.mkdir()
    assert toy.run(TOY_BROKEN="user")[0] == 2
    assert toy.run_folder.is_dir() and not list(toy.run_folder.iterdir())


def test_a_start_that_fails_keeps_its_log(toy: Toy):
    assert toy.run(TOY_BROKEN="crash")[0] == 1
    assert "RuntimeError: a defect" in (toy.folder / "log.txt").read_text()


def test_the_card_names_the_stage_that_comes_next(toy: Toy):
    last = toy.run()[1].rstrip().splitlines()[-1]
    assert last.startswith("  next         python scripts/02_clean_deduplicate.py --config ")
