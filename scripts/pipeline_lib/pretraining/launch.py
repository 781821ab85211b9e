"""How stage 05 starts: as one process, or as one of several that torchrun started.

With several, process 0 goes through the whole life of a stage (prerequisites, lock, card, exit code). The others wait
until it either trains, and then do their share, or ends, and then end with its exit code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from pipeline_lib.stage import Estimate, Stage, StageFailure, StageInterrupted, UserError, run_stage
from pipeline_lib.stage.catalog import BY_NAME
from pipeline_lib.stage.parallel import available_cores
from pipeline_lib.stage.workspace import Workspace


def run_on_all_processes(
    name: str,
    run: Callable[[Stage], None],
    estimate: Callable[[Stage], Estimate],
    follow: Callable[[Stage], object],
    **options: Any,
) -> None:
    """Run stage `name` by `run` on the first process and by `follow` on the others; does not return.

    options: what else `run_stage` takes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        run_stage(name, run, estimate=estimate, **options)
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as run_stage does, before torch loads
    from .distribution import join

    processes = join("auto")
    if not processes.first:
        _follow(name, follow)
    trained = False

    def announced(stage: Stage) -> None:
        nonlocal trained
        trained = True
        processes.share({"train": stage.settings.model_dump(mode="json")})
        run(stage)

    try:
        run_stage(name, announced, estimate=estimate, **options)
    except SystemExit as end:
        if not trained:
            processes.share({"exit": end.code})
        raise


def _follow(name: str, follow: Callable[[Stage], object]) -> NoReturn:
    from pipeline_lib.config.command_line import read_command_line

    from .distribution import join

    message = join("auto").share(None)
    if "exit" in message:
        sys.exit(message["exit"])
    try:
        spec = BY_NAME[name]
        options = read_command_line(spec.section, spec.does, sys.argv[1:])
        cores = options.config.threads or available_cores()
        stage = Stage(spec, options.config, options.run_folder, cores, options.arguments)
        stage.settings = type(stage.settings).model_validate(message["train"])  # as the first one decided to continue
        stage.follow(Workspace(stage.folder, {}))
        with stage.signals.watching():
            follow(stage)
    except StageInterrupted as interruption:
        sys.exit(128 + interruption.signal_number)
    except (UserError, StageFailure) as error:  # perhaps met by this process alone: a node that lacks a mount
        print(f"process {os.environ['RANK']}: {error}", file=sys.stderr, flush=True)
        sys.exit(2 if isinstance(error, UserError) else 1)
    sys.exit(0)
