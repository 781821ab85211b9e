"""RESULTS.md keeps what was measured: section by section, each with its date, commit and machine."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "run_all.py"


@pytest.fixture(scope="module")
def main():
    specification = importlib.util.spec_from_file_location("run_all", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.main


@pytest.fixture
def folder(tmp_path):
    """A checkout with three benchmarks: two print what values.txt says, one needs the genuine records."""
    folder = tmp_path / "checkout" / "benchmarks"
    folder.mkdir(parents=True)
    (folder / "run_all.py").write_text("raise SystemExit('run_all is no benchmark')")
    for name in ("zebra", "apple"):
        (folder / f"{name}.py").write_text(
            "import json, pathlib\n"
            "value = pathlib.Path(__file__).with_name('value.txt').read_text()\n"
            "if value == 'fail': raise SystemExit(3)\n"
            f"print('a word'); print(json.dumps({{'claim': '{name} a|b', 'ours': value, 'ratio': '2x'}}))\n"
        )
    (folder / "genuine.py").write_text("")
    (folder / "value.txt").write_text("first")
    return folder


def sections(folder: Path) -> dict[str, str]:
    parts = (folder / "RESULTS.md").read_text().split("\n## ")[1:]
    return {part.split("\n")[0]: part for part in parts}


def test_named_benchmarks_replace_their_sections_and_keep_the_others(main, folder):
    assert main(folder, []) == 0
    before = sections(folder)
    assert list(before) == ["apple", "genuine", "zebra"]
    (folder / "value.txt").write_text("second")
    assert main(folder, ["zebra.py", "zebra"]) == 0
    after = sections(folder)
    assert after["apple"] == before["apple"]
    assert after["genuine"] == before["genuine"]
    assert "| zebra a\\|b | second |  | 2x |  |" in after["zebra"]
    assert "first" not in after["zebra"]


def test_each_section_carries_date_commit_and_machine(main, folder):
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder.parent), "-c", "user.name=n", "-c", "user.email=e", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    first = git("rev-parse", "--short", "HEAD")
    assert main(folder, ["apple"]) == 0
    git("add", ".")
    git("commit", "-q", "-m", "two")
    assert main(folder, ["genuine"]) == 0
    (folder / "value.txt").write_text("changed")
    assert main(folder, ["zebra"]) == 0
    second = git("rev-parse", "--short", "HEAD")
    found = sections(folder)
    today = time.strftime("%Y-%m-%d")
    assert f"{today}, commit {first}, " in found["apple"]
    # RESULTS.md itself differs from the commit by now, and that is no change of the code.
    assert f"{today}, commit {second}, " in found["genuine"]
    assert f"{today}, commit {second} with uncommitted changes, " in found["zebra"]
    assert all("cores, Python 3." in section for section in found.values())


def test_a_benchmark_without_its_genuine_records_says_so_and_deletes_no_figures(main, folder):
    assert main(folder, ["genuine", "apple"]) == 0
    assert "not measured: the genuine records of ../shared/data are missing" in sections(folder)["genuine"]
    assert "| claim |" not in sections(folder)["genuine"]
    measured = sections(folder)["apple"]
    (folder / "apple.py").write_text("")
    assert main(folder, ["apple"]) == 0
    assert sections(folder)["apple"] == measured


def test_a_benchmark_that_prints_nothing_beside_its_records_has_failed(main, folder, capsys):
    (folder.parents[1] / "shared" / "data").mkdir(parents=True)
    assert main(folder, ["genuine"]) == 1
    assert "genuine.py printed no row" in capsys.readouterr().err
    assert not (folder / "RESULTS.md").exists()


def test_a_failure_keeps_what_was_measured_and_runs_the_rest(main, folder, capsys):
    assert main(folder, []) == 0
    before = sections(folder)
    (folder / "apple.py").write_text("raise SystemExit(3)")
    (folder / "value.txt").write_text("second")
    assert main(folder, []) == 1
    assert sections(folder)["apple"] == before["apple"]
    assert "second" in sections(folder)["zebra"]
    assert "apple.py failed with exit code 3" in capsys.readouterr().err


def test_a_run_stopped_in_the_middle_keeps_the_finished_benchmarks(main, folder):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    (folder / "genuine.py").write_text("import os, signal; os.kill(os.getppid(), signal.SIGINT)")
    try:
        with pytest.raises(KeyboardInterrupt):
            main(folder, [])
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(sections(folder)) == ["apple"]


def test_options_go_to_the_one_benchmark_named_and_into_its_section(main, folder, capsys):
    (folder / "apple.py").write_text("import json, sys; print(json.dumps({'claim': 'apple', 'ours': sys.argv[1:]}))")
    assert main(folder, ["apple"], ["--reduced", "3"]) == 0
    assert "['--reduced', '3']" in sections(folder)["apple --reduced 3"]
    assert main(folder, ["apple"]) == 0 and list(sections(folder)) == ["apple", "apple --reduced 3"]
    assert main(folder, ["apple", "zebra"], ["--reduced"]) == 2
    assert "options need one benchmark, not 2" in capsys.readouterr().err


def test_without_names_the_options_that_a_claim_names_are_measured_too(folder, scripts):
    shutil.copyfile(SCRIPT, folder / "run_all.py")
    (folder / "claims.py").write_text(
        "from types import SimpleNamespace as Claim\n"
        "CLAIMS = (Claim(benchmark='zebra', row='speed'), Claim(benchmark='apple --reduced 3', row='speed'),\n"
        "          Claim(benchmark='apple --peers all', row='litgpt'))\n"
    )
    (folder / "apple.py").write_text("import json, sys; print(json.dumps({'claim': 'apple', 'ours': sys.argv[1:]}))")

    def measure(**variables: str) -> str:
        inherited = {name: value for name, value in os.environ.items() if name != "LITGPT_PYTHON"}
        environment = {**inherited, "PYTHONPATH": str(scripts), **variables}
        command = [sys.executable, str(folder / "run_all.py")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert "apple --peers all: not measured, LITGPT_PYTHON names no Python that has litgpt" in measure()
    assert list(sections(folder)) == ["apple", "apple --reduced 3", "genuine", "zebra"]
    assert "['--reduced', '3']" in sections(folder)["apple --reduced 3"]
    measure(LITGPT_PYTHON="python")
    assert list(sections(folder)) == ["apple", "apple --peers all", "apple --reduced 3", "genuine", "zebra"]


def test_a_wrong_name_is_answered_with_the_right_ones_before_anything_runs(main, folder, capsys):
    assert main(folder, ["apple", "zebre.py"]) == 2
    error = capsys.readouterr().err
    assert error == "there is no benchmark zebre.py; there are: apple, genuine, zebra\n"
    assert not (folder / "RESULTS.md").exists()


def test_the_section_of_a_deleted_benchmark_goes(main, folder):
    assert main(folder, []) == 0
    (folder / "zebra.py").unlink()
    assert main(folder, ["apple"]) == 0
    assert list(sections(folder)) == ["apple", "genuine"]


def test_imports_are_kept_compiled_also_where_the_shell_forbids_it(main, folder, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    (folder / "apple.py").write_text(
        "import json, sys; print(json.dumps({'claim': 'kept', 'ours': not sys.dont_write_bytecode}))"
    )
    assert main(folder, ["apple"]) == 0
    assert "| kept | True |" in sections(folder)["apple"]
