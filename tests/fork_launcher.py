"""Start numbered scripts many times without paying for their imports each time.

A helper process, one for all tests of a process, imports what the scripts need, without computing anything, and forks
for every start. The child is a process of its own that runs the script as `__main__` in another folder: it can be
signalled and killed like one started from a shell. What a script imports, and when, is not tested this way.
"""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"

_HELPER = """
import gc, json, os, resource, runpy, sys
sys.path.insert(0, sys.argv[1])
import datasets, lm_eval.evaluator, numba, numpy, pyarrow.parquet, torch, torch.utils.tensorboard
import transformers.models.llama.modeling_llama
import numba.core.entrypoints
from transformers import AutoModelForCausalLM, LlamaForCausalLM
numba.core.entrypoints.init_all()
import pipeline_lib.config.command_line, pipeline_lib.config.run, pipeline_lib.packing.open_cache
import pipeline_lib.pretraining.inputs, pipeline_lib.pretraining.loop, pipeline_lib.pretraining.outcome
gc.collect(), gc.freeze()  # the children need not look through all this
print("ready", flush=True)
for line in sys.stdin:
    request = json.loads(line)
    ranks = request["processes"]
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if pid != 0:
            pids.append(pid)
            continue
        if ranks > 1:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            os.environ.update({name: str(value) for name, value in place.items()})
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(request["port"]))
        for name, descriptor in (("output", 1), ("errors", 2)):
            if request[name] is not None:
                written = os.open(f"{request[name]}{rank or ''}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(written, descriptor)
        if request["errors"] is None:
            os.dup2(1, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if request["spare_bytes"] is not None:
            used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + request["spare_bytes"],) * 2)
        if request["file_bytes"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_bytes"],) * 2)
        sys.argv = request["command"]
        runpy.run_path(sys.argv[0], run_name="__main__")
        os._exit(0)
    print(pids[0], flush=True)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    print(json.dumps(codes), flush=True)
"""


@dataclass
class Outcome:
    """How a start ended: exit codes (negative: killed by that signal) and what the first process printed."""

    codes: list[int]
    output: str

    @property
    def code(self) -> int:
        """Exit code of the first process."""
        return self.codes[0]


@cache
def _helper() -> subprocess.Popen:
    command = [sys.executable, "-c", _HELPER, str(SCRIPTS)]
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    started = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/", env=environment
    )
    atexit.register(started.stdin.close)  # which ends it
    assert started.stdout.readline() == "ready\n"
    return started


class Launcher:
    """Runs one script, one start at a time."""

    def __init__(self, script: str):
        self._script = str(SCRIPTS / script)

    def start(
        self,
        config: Path,
        run: Path,
        *flags: str,
        signal_number: int = signal.SIGKILL,
        when: Callable[[], bool] | None = None,
        spare_bytes: int | None = None,
        file_bytes: int | None = None,
        processes: int = 1,
        errors: Path | None = None,
    ) -> Outcome:
        """Start the script and wait for its end; with `when`, send it a signal as soon as that is true.

        spare_bytes: how much more memory the script may map than it has at its start; file_bytes: how large a file may
        become; processes: how many share the work, as torchrun would start them (signals go to the first);
        errors: a file for what goes to stderr, which is otherwise part of the output.
        """
        output = run / "output.txt"
        request = {
            "command": [self._script, "--config", str(config), "--run-dir", str(run), *flags],
            "output": str(output),
            "errors": errors and str(errors),
            "spare_bytes": spare_bytes,
            "file_bytes": file_bytes,
            "processes": processes,
            "port": _free_port(),
        }
        helper = _helper()
        print(json.dumps(request), file=helper.stdin, flush=True)
        pid = int(helper.stdout.readline())
        while when is not None and _alive(pid):
            if when():
                os.kill(pid, signal_number)
                break
            time.sleep(0.0005)
        return Outcome(json.loads(helper.stdout.readline()), output.read_text())


def run_script(script: str, config: Path, run: Path, *flags: str) -> subprocess.CompletedProcess:
    """Run a numbered script to its end."""
    errors = run / "errors.txt"
    done = Launcher(script).start(config, run, *flags, errors=errors)
    return subprocess.CompletedProcess(script, done.code, done.output, errors.read_text())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _alive(pid: int) -> bool:
    # The helper waits for the child, so a finished one disappears; until then its state tells.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
