"""How stage 05 starts: as one process, or as one of several that torchrun started.

With several, process 0 goes through the whole life of a stage (prerequisites, lock, card, exit code). The others wait
until it either trains, and then do their share, or ends, and then end with its exit code. When all leave early (by a
signal or the time limit), the others wait for the first one, which saves: torchrun ends the rest when one has ended.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from pipeline_lib.stage import Estimate, Stage, StageFailure, StageInterrupted, UserError, run_stage
from pipeline_lib.stage.catalog import BY_NAME
from pipeline_lib.stage.parallel import available_cores
from pipeline_lib.stage.torchrun import leave_word, left_before, restart
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
        run_stage(name, lambda stage: _unless_it_left(stage, restart(), run), estimate=estimate, **options)
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as run_stage does, before torch loads
    from .distribution import join

    processes = join("auto")
    restarts = processes.largest(restart())
    if not processes.first:
        _follow(name, follow)
    trained = False

    def announced(stage: Stage) -> None:
        nonlocal trained
        trained = True
        processes.share({"train": stage.settings.model_dump(mode="json")})
        run(stage)

    def train(stage: Stage) -> None:
        try:
            _unless_it_left(stage, restarts, announced)
        except StageInterrupted:
            if trained:
                with suppress(RuntimeError):  # one that was killed meanwhile need not be told
                    processes.share("left")
            raise

    try:
        run_stage(name, train, estimate=estimate, **options)
    except SystemExit as end:
        if not trained:
            processes.share({"exit": end.code})
        raise


def _unless_it_left(stage: Stage, restarts: int, run: Callable[[Stage], None]) -> None:
    """Run the stage and leave word when it leaves early; raise StageInterrupted when that was a start of this torchrun.

    restarts: how often torchrun has started this again.
    """
    if (signal_number := left_before(stage.work, restarts)) is not None:
        stage.say(
            f"{stage.name}: restart {restarts} of torchrun; the start before left with all saved, and so does this"
        )
        raise StageInterrupted(signal_number)
    try:
        run(stage)
    except StageInterrupted as interruption:
        leave_word(stage.work, interruption.signal_number, restarts)
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
            _follow_to_the_end(stage, follow)
    except StageInterrupted as interruption:
        sys.exit(128 + interruption.signal_number)
    except (UserError, StageFailure) as error:  # perhaps met by this process alone: a node that lacks a mount
        print(f"process {os.environ['RANK']}: {error}", file=sys.stderr, flush=True)
        sys.exit(2 if isinstance(error, UserError) else 1)
    sys.exit(0)


def _follow_to_the_end(stage: Stage, follow: Callable[[Stage], object]) -> None:
    from .distribution import join

    try:
        follow(stage)
    except StageInterrupted:
        with suppress(RuntimeError):  # the first one failed while it saved, and says so itself
            join("auto").share(None)
        raise
