"""make tells every program that it starts which run it is about, and where that lies."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REPORT = "-m pipeline_lib.reporting.report --config configs/demo.yaml\n"


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs make with an environment whose Python prints its arguments and does nothing else."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    for stamp in (".made", ".installed"):
        (tmp_path / "venv" / stamp).touch()
    # A make that runs the tests hands its own variables on, by the environment and in MAKEFLAGS.
    handed_on = ("MAKE", "MFLAGS", "FLAGS", "CONFIG", "RUN_DIR")
    outer = {name: value for name, value in os.environ.items() if not name.startswith(handed_on)}

    def run(*words: str, **variables: str) -> subprocess.CompletedProcess:
        command = ["make", "-C", str(ROOT), "--no-print-directory", f"VENV={tmp_path / 'venv'}", *words]
        return subprocess.run(command, env=outer | variables, capture_output=True, text=True, check=False, timeout=60)

    return run


def test_the_run_folder_goes_to_every_stage_the_card_the_report_and_the_chat(make):
    done = make("all", "report", "chat", "CONFIG=mine.yaml", "RUN_DIR=/runs/my run", "FLAGS=--seed 7")
    assert done.returncode == 0, done.stderr
    started = done.stdout.splitlines()
    stages = sorted(script.name for script in (ROOT / "scripts").glob("[0-9][0-9]_*.py"))
    programs = [f"scripts/{name}" for name in stages]
    programs += [f"-m pipeline_lib.reporting.{name}" for name in ("run_card", "report", "chat")]
    assert [line.partition(" --config mine.yaml --run-dir /runs/my run")[0] for line in started] == programs
    assert [line for line in started if line.endswith(" --seed 7")] == [*started[: len(stages)], started[-1]]


def test_without_a_run_folder_the_configuration_says_where_it_lies(make):
    assert make("report").stdout == "-m pipeline_lib.reporting.report --config configs/demo.yaml\n"


def test_a_run_folder_among_the_flags_is_refused_and_nothing_runs(make):
    done = make("all", "FLAGS=--force --run-dir /runs/mine")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "say RUN_DIR=FOLDER instead" in done.stderr


def test_what_python_compiles_is_kept_also_where_the_shell_forbids_it(make):
    done = make("--eval=probe: ; @echo [$$PYTHONDONTWRITEBYTECODE]", "probe", PYTHONDONTWRITEBYTECODE="1")
    assert done.stdout == "[]\n", done.stderr


VENV_THAT_FAILS_ONCE = """#!/bin/sh
[ "$1" = -m ] || { echo "$0"; exit 0; }
mkdir -p "$3/bin"
touch "$3/pyvenv.cfg"
if [ -e "$0.failed" ]; then
    printf '#!/bin/sh\\necho "$@"\\n' > "$3/bin/python"
    chmod +x "$3/bin/python"
else
    touch "$0.failed"
    printf '#!/bin/sh\\necho No module named pip >&2\\nexit 1\\n' > "$3/bin/python"
    chmod +x "$3/bin/python"
    echo ensurepip is not available >&2
    exit 1
fi
"""


def test_an_environment_whose_making_failed_is_made_again(make, tmp_path: Path):
    shutil.rmtree(tmp_path / "venv")
    python = tmp_path / "python-for-make"
    python.write_text(VENV_THAT_FAILS_ONCE)
    python.chmod(0o755)
    first = make("report", f"PYTHON={python}")
    assert first.returncode != 0 and "ensurepip is not available" in first.stderr
    assert (tmp_path / "venv" / "bin" / "python").exists(), "as venv leaves it, without pip"
    second = make("report", f"PYTHON={python}")
    assert second.returncode == 0, second.stderr
    assert second.stdout.splitlines()[-1].startswith("-m pipeline_lib.reporting.report")
    third = make("report", "PYTHON=false")
    assert third.stdout == "-m pipeline_lib.reporting.report --config configs/demo.yaml\n", "what is made stays"


def test_an_environment_from_before_the_stamp_is_not_made_again(make, tmp_path: Path):
    (tmp_path / "venv" / ".made").unlink()
    done = make("report", "PYTHON=false")
    assert done.returncode == 0, done.stderr
    assert "-m pip install" in done.stdout and done.stdout.endswith(REPORT)
    assert make("report", "PYTHON=false").stdout == REPORT


WITHOUT_PIP = "#!/bin/sh\nexit 1\n"
BASE = """#!/bin/sh
[ "$1" = -m ] || { echo "$0"; exit 0; }
mkdir -p "$3/bin"
touch "$3/pyvenv.cfg"
[ ! -e "$3/bin/python" ] || exit 1
printf '#!/bin/sh\\necho "$@"\\n' > "$3/bin/python"
chmod +x "$3/bin/python"
"""


def program(path: Path, text: str) -> Path:
    """Write a script that can be started."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_an_interpreter_that_venv_did_not_make_is_left_alone(make, tmp_path: Path):
    (tmp_path / "venv" / ".made").unlink()
    python = program(tmp_path / "venv" / "bin" / "python", WITHOUT_PIP)
    base = program(tmp_path / "python-for-make", BASE)
    done = make("report", f"PYTHON={base}")
    assert done.returncode != 0 and python.read_text() == WITHOUT_PIP
    assert "was not made by venv, and pip is missing there" in done.stderr.splitlines()[0]


def test_the_python_of_the_very_environment_makes_it_again(make, tmp_path: Path):
    (tmp_path / "venv" / ".made").unlink()
    base = program(tmp_path / "python-for-make", BASE)
    program(tmp_path / "venv" / "bin" / "python", WITHOUT_PIP)
    active = program(tmp_path / "venv" / "bin" / "python3", f'#!/bin/sh\n[ "$1" = -c ] && echo {base}\n')
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    done = make("report", f"PYTHON={active}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(REPORT) and not active.exists()


def test_a_complete_environment_that_takes_no_stamp_is_used(make, tmp_path: Path):
    (tmp_path / "venv" / ".made").unlink()
    (tmp_path / "venv" / ".made").symlink_to(tmp_path / "nowhere" / "stamp")  # refused to root as well
    done = make("report", "PYTHON=false")
    assert done.returncode == 0 and done.stdout.endswith(REPORT), done.stderr


@pytest.mark.slow
def test_a_real_environment_without_pip_gets_it(make, tmp_path: Path):
    environment = tmp_path / "venv"
    shutil.rmtree(environment)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    done = make(str(environment / ".made"), f"PYTHON={sys.executable}")
    assert done.returncode == 0, done.stderr
    subprocess.run([environment / "bin" / "python", "-m", "pip", "--version"], check=True, capture_output=True)
