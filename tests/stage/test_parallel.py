"""Work in several processes: results in order, failures at their turn, workers that end with their parent."""

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path

import pytest

from pipeline_lib.stage import StageFailure, UserError, ordered_map
from pipeline_lib.stage.errors import WorkersLost


def _slow_square(number: int) -> int:
    import time

    time.sleep(0.02 * (number % 3))
    return number * number


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_ordered_map_gives_results_in_item_order_for_any_worker_count(workers: int):
    assert list(ordered_map(_slow_square, range(20), workers)) == [number * number for number in range(20)]


def _fail_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number


def _refuse(message: str) -> None:
    raise UserError(message)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_an_initializer_refuses_is_what_the_user_is_told(workers: int):
    with pytest.raises(UserError, match=r"no list at /x"):
        list(ordered_map(_slow_square, range(4), workers, _refuse, ("no list at /x",)))


def _be_killed(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_worker_is_a_failure_with_what_to_do():
    with pytest.raises(StageFailure, match="worker process was killed.*lower threads"):
        list(ordered_map(_be_killed, range(4), 2))


def _items_that_end_the_fork_server(ended: list[int]) -> Iterator[int]:
    yield 0
    ended.append(forkserver._forkserver._forkserver_pid)
    os.kill(ended[-1], signal.SIGKILL)
    yield from range(1, 20)


def test_the_end_of_the_fork_server_is_the_loss_of_the_workers():
    """A signal to the process group ends it too, perhaps while the next worker is being asked for."""
    for _ in range(3):
        ended: list[int] = []
        with pytest.raises(WorkersLost):
            list(ordered_map(_slow_square, _items_that_end_the_fork_server(ended), 4))
        with suppress(ChildProcessError):  # a pool that begins before its end is seen would lose its workers too
            os.waitid(os.P_PID, ended[0], os.WEXITED | os.WNOWAIT)


def test_ordered_map_raises_a_workers_exception_at_its_turn():
    results = ordered_map(_fail_at_three, range(10), 2)
    assert [next(results), next(results), next(results)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path, scripts: Path):
    program = tmp_path / "parent.py"
    program.write_text(
        "import os, sys, time\n"
        f"sys.path.insert(0, {str(scripts)!r})\n"
        "from pipeline_lib.stage import ordered_map\n"
        "def name_yourself(folder):\n"
        "    open(os.path.join(folder, str(os.getpid())), 'w').close()\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        f"    list(ordered_map(name_yourself, [{str(tmp_path / 'pids')!r}] * 2, 2))\n"
    )
    (tmp_path / "pids").mkdir()
    parent = subprocess.Popen([sys.executable, str(program)])
    workers = _wait_for(lambda: len(os.listdir(tmp_path / "pids")) == 2 and os.listdir(tmp_path / "pids"))
    parent.kill()
    parent.wait()
    assert _wait_for(lambda: not any(_is_alive(int(pid)) for pid in workers))


def test_what_is_preloaded_is_there_before_the_workers_and_their_modules_are_found(tmp_path: Path, scripts: Path):
    (tmp_path / "loaded_once.py").write_text("import os\nPROCESS = os.getpid()\n")
    program = tmp_path / "parent.py"
    program.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(scripts)!r})\n"
        "from pipeline_lib.stage import ordered_map\n"
        "def ask(_):\n"
        "    import loaded_once\n"
        "    return loaded_once.PROCESS, os.getpid(), os.getppid()\n"
        "if __name__ == '__main__':\n"
        "    answers = list(ordered_map(ask, range(8), 2, preload=['loaded_once']))\n"
        "    answers += ordered_map(ask, range(8), 2, preload=['loaded_once'])\n"
        "    import psutil\n"
        "    left = [p for p in psutil.Process().children() if 'forkserver' in ' '.join(p.cmdline())]\n"
        "    print(answers, len(left), repr(os.environ.get('PYTHONPATH')))\n"
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True)
    answers, rest = done.stdout.rstrip().rsplit("] ", 1)
    answers = ast.literal_eval(answers + "]")
    for loaded_in, worker, server in answers:
        assert loaded_in == server != worker
    assert len({server for _, _, server in answers}) == 2
    assert rest == f"0 {os.environ.get('PYTHONPATH')!r}"


def _is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def _wait_for(condition):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise TimeoutError("the condition did not come true in 30 s")
