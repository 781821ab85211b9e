"""`run_stage`: the whole life of a stage, the same for every numbered script.

read config and flags -> finish an interrupted publication -> prerequisites -> up to date? -> lock -> find unfinished
work -> run -> check the ledger -> publish -> card -> exit code.

Exit codes: 0 done (also "up to date"), 1 the work failed or a gate did, 2 usage, configuration or a missing
prerequisite, 130 and 143 interrupted by SIGINT and SIGTERM.
"""

import errno
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .account import describe_engine, describe_request, describe_run, print_card
from .catalog import BEFORE_PACKED, BY_NAME, StageSpec
from .errors import StageFailure, StageInterrupted, UserError, WorkersLost
from .freshness import (
    as_begun,
    as_finished,
    fingerprint_of,
    status_of,
    superseded_inputs,
    try_fingerprint,
    unfinished,
    warn_of_other_settings,
    why_not_up_to_date,
)
from .inputs import repairing_command
from .lock import LOCK, StageIsLocked, StageLock
from .manifest import MANIFEST, Manifest
from .memory import PeakMemory
from .parallel import available_cores
from .plan import Estimate, print_plan
from .stage import LOG, Stage
from .system_errors import is_out_of_memory, spell_system_error, tells_of_a_full_disk
from .torchrun import restart, starts_again
from .workspace import Workspace, finish_publication

if TYPE_CHECKING:
    import argparse

_FOREIGN_SECONDS = 5.0


@dataclass(frozen=True)
class ActionContext:
    """What a script's own action flag (such as `--why ID`) gets: the settings and where the finished stage lies.

    run_folder: of the whole run; arguments: the flags that lead another script to the same run; command: what makes
    the outputs of this stage; origins: where each setting that is not a default came from, by dotted name; plan:
    whether nothing is to be changed; fingerprint: makes what a start now would be made from, raises UserError when an
    input is missing.
    """

    config: Any
    settings: Any
    stage_folder: Path
    run_folder: Path
    arguments: str
    command: str
    origins: dict[str, str]
    plan: bool
    fingerprint: Callable[[], dict[str, Any]]


GO_ON = "go on"
"""An action that returns this has prepared something, and the stage runs after it."""


def run_stage(
    stage: str | StageSpec,
    run: Callable[[Stage], None],
    estimate: Callable[[Stage], Estimate] | None = None,
    inputs: Callable[[Any], dict[str, Any]] | None = None,
    extra_arguments: Callable[["argparse.ArgumentParser"], None] | None = None,
    actions: dict[str, Callable[[ActionContext, Any], int | str | None]] | None = None,
    join: Callable[[Stage], None] | None = None,
    continue_with: Callable[[Stage, dict[str, Any], dict[str, Any]], Any] | None = None,
    argv: list[str] | None = None,
) -> None:
    """Run a numbered script from its command line and leave the process with the right exit code.

    run: does the work; estimate: the probe behind `--plan`; inputs: from the configuration, JSON that identifies
    data outside the run (file digests, package versions); extra_arguments and actions: flags of this script that do
    something instead of running the stage, or before it (see GO_ON; another number is the exit code); the values of all
    of them are in `stage.flags`. join: takes a share of the work while another process runs the same stage; without
    it, a second process is refused. continue_with: given the fingerprints of unfinished work and of this start, which
    differ, returns the settings with which that work goes on, None to begin anew; without it, such work is superseded.
    """
    spec = BY_NAME[stage] if isinstance(stage, str) else stage
    arguments = sys.argv[1:] if argv is None else argv
    try:
        code = _main(spec, run, estimate, inputs, extra_arguments, actions or {}, join, continue_with, arguments)
    except UserError as error:
        code = _complain(error, 2)
    except StageFailure as error:
        code = _complain(error, 1)
    except BrokenPipeError:  # the reader of our output left, as in `... --plan | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        code = _complain(spell_system_error(error), 1)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        code = _complain(
            "out of memory: use smaller batches or fewer threads, then start again; finished units are kept", 1
        )
    except KeyboardInterrupt:
        code = _complain("stopped at once; the same command continues: only the unit in hand is done again", 130)
    sys.stdout.flush()
    sys.exit(code)


def _complain(message: object, code: int) -> int:
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code


def _main(spec, run, estimate, inputs, extra_arguments, actions, join, continue_with, argv) -> int:
    from pipeline_lib.config.command_line import read_command_line

    # Idle OpenMP threads sleep instead of spinning. On a machine with other work, spinning threads take the very core
    # that the last thread of a parallel region needs: training here was 2 to 10 times slower. Read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("PIPELINE_STAGE", spec.name)  # compiled.py: numba's extensions are not loaded
    main_module = sys.modules["__main__"]
    description = main_module.__doc__ or spec.does
    options = read_command_line(spec.section, description, argv, extra_arguments, spec.scales_out)
    run_folder = options.run_folder
    stage = Stage(spec, options.config, run_folder, options.config.threads or available_cores(), options.arguments)
    stage.typed_settings, stage.own_arguments = options.typed_settings, options.own_arguments
    for name, action in actions.items():
        if (value := options.extra.get(name)) is not None:
            folder = stage.elsewhere(spec.name) or stage.folder
            context = ActionContext(
                options.config,
                stage.settings,
                folder,
                run_folder,
                options.arguments,
                stage.command,
                options.origins,
                options.plan,
                lambda: fingerprint_of(stage, spec, inputs),
            )
            if (outcome := action(context, value)) != GO_ON:
                return outcome or 0
    if options.config.packed and spec.name in BEFORE_PACKED:
        print(f"{spec.name}: nothing to do, the run starts from the packed cache {options.config.packed}", flush=True)
        return 0
    if options.plan:
        fingerprint, problem = try_fingerprint(stage, spec, inputs)
        status = problem or status_of(stage, fingerprint, options.force, continue_with is not None)
        return 0 if print_plan(stage, options.origins, status, estimate) else 1
    stage.flags, stage.forced, stage.origins = options.extra, options.force, options.origins
    return _execute(stage, spec, run, inputs, join, continue_with)


def _execute(stage: Stage, spec: StageSpec, run: Callable[[Stage], None], inputs, join, continue_with) -> int:
    run_folder_is_new = not stage.folder.parent.exists()
    _make_folder(stage.folder)
    said_before = (stage.folder / LOG).exists()
    stage.open_log()
    if stage.forced and restart():
        stage.forced = False
        stage.say(f"{stage.name}: restart {restart()} of torchrun; --force counted at the first start only")
    lock = _lock_or_share(stage, spec, inputs, join)
    force, refused = stage.forced, False
    try:
        if finish_publication(stage.folder):
            stage.say(f"{stage.name}: finished moving its outputs into place")
        fingerprint = fingerprint_of(stage, spec, inputs)
        superseded = superseded_inputs(stage)
        if spec.verdict_files:
            if superseded:
                raise UserError(superseded[0])
            for source in stage.inputs.values():
                source.check()
        manifest = Manifest.read(stage.folder / MANIFEST)
        reason = "--force was given" if force else why_not_up_to_date(stage, manifest, fingerprint)
        if reason is None:
            failed = f", and failed: {manifest.result.get('failed', 'see its card')}" if manifest.exit_code else ""
            print(f"{stage.name}: up to date{failed}", flush=True)
            return manifest.exit_code
        stage.say(f"{stage.name} {spec.does} ({reason})")
        for line in superseded:
            stage.note(line, lasting=False)
        warn_of_other_settings(stage)
        stage.forced = force or unfinished(stage, fingerprint).begun_by_force()
        asked_for = fingerprint = as_begun(stage, Workspace.made_from(stage.folder), fingerprint)
        if continue_with is not None and not force:
            fingerprint = _continue_other_work(stage, fingerprint, continue_with)
        return _run_and_publish(stage, spec, run, fingerprint, asked_for, force)
    except UserError:
        refused = True
        if spec.verdict_files:
            _withdraw(stage)
        raise
    finally:
        _release(stage.folder, lock, discard=refused and not said_before, run_folder_too=run_folder_is_new)


def _release(folder: Path, lock: StageLock, discard: bool, run_folder_too: bool) -> None:
    """Give the lock back; `discard`: with the folder, where nothing but this start is in it.

    run_folder_too: also the run's, if nothing else is in it. One that was there before may be somebody's mount, the
    target of a link, or the folder that a shell is in.

    A stage that was refused at once is none that has begun. Another process that waits for the lock makes the folder
    anew (see lock.py), so an entry that appears in this moment keeps it.
    """
    if not discard or {path.name for path in folder.iterdir()} - {LOCK, LOG}:
        lock.release()
        return
    (folder / LOG).unlink(missing_ok=True)
    lock.release(remove=True)
    with suppress(OSError):  # not empty
        folder.rmdir()
        if run_folder_too:
            folder.parent.rmdir()


def _withdraw(stage: Stage) -> None:
    """Remove an earlier verdict: whoever reads its files after this start failed would take them for today's.

    The files go by the names that the catalogue has for them, and before the manifest: neither a kill in between nor
    a manifest that is damaged or gone makes the next start pass one over.
    """
    found = [path for name in (*stage.spec.verdict_files, MANIFEST) if (path := stage.folder / name).exists()]
    for path in found:
        path.unlink()
    if found:
        stage.say(f"{stage.name}: the earlier verdict no longer holds and is withdrawn")


def _continue_other_work(stage: Stage, fingerprint: dict[str, Any], continue_with) -> dict[str, Any]:
    """Let the stage decide with which settings unfinished work of another fingerprint goes on; return the new one."""
    begun = Workspace.made_from(stage.folder)
    if begun is None or begun == fingerprint:
        return fingerprint
    settings = continue_with(stage, begun, fingerprint)
    if settings is None:
        return fingerprint
    stage.settings = settings
    fingerprint = {**fingerprint, "settings": settings.deciding()}
    workspace = Workspace(stage.folder, fingerprint)
    workspace.keep_notes(stage.lasting_notes)  # first: once taken over, nothing tells the next start what has changed
    workspace.take_over()
    return fingerprint


def _lock_or_share(stage: Stage, spec: StageSpec, inputs, join) -> StageLock:
    """Return the lock of the stage folder; while another process has it, help that process if the stage knows how.

    Raises UserError when the stage cannot be shared, or the other process makes it from other settings or inputs.
    """
    foreign_since = None
    while True:
        try:
            return StageLock(stage.folder / LOCK, stage.say)
        except StageIsLocked:
            if join is None or stage.forced:
                raise
            workspace = Workspace(stage.folder, fingerprint_of(stage, spec, inputs))
            begun = workspace.begun()
            if begun is not False:
                foreign_since = None
            elif foreign_since is None:
                foreign_since = time.monotonic()  # perhaps leftovers that the other one is about to discard
            elif time.monotonic() - foreign_since > _FOREIGN_SECONDS:
                raise UserError(
                    f"{stage.folder} is being written by another process from other settings, inputs or code; wait"
                    " for it, or give both the same ones"
                ) from None
            if begun:
                stage.share(workspace)
                join(stage)
            time.sleep(0.1)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be created ({error.strerror}); choose another place with --run-dir") from None


def _run_and_publish(
    stage: Stage, spec: StageSpec, run, fingerprint: dict[str, Any], asked_for: dict[str, Any], force: bool
) -> int:
    workspace = Workspace(stage.folder, fingerprint)
    workspace.open(fresh=force, keep_superseded=spec.keeps_superseded, say=stage.say)
    stage.begin(workspace)
    peak = PeakMemory()
    try:
        return _run_measured(stage, workspace, run, fingerprint, asked_for, peak)
    finally:
        peak.stop()  # a program that runs stages would keep a sampling thread for each that failed


def _run_measured(
    stage: Stage,
    workspace: Workspace,
    run: Callable[[Stage], None],
    fingerprint: dict[str, Any],
    asked_for: dict[str, Any],
    peak: PeakMemory,
) -> int:
    started = time.time()
    try:
        with stage.signals.watching():
            run(stage)
            stage.stop_if_interrupted()
            files, ledger = stage.collect()
            ledger.check()
            for name in stage.needs:
                ledger.check_chain(stage.input(name).ledger, name)
    except StageInterrupted as interruption:
        return _leave_interrupted(stage, workspace, interruption.signal_number)
    except WorkersLost:
        if not stage.interrupted:
            workspace.discard_if_empty()
            raise
        # the signal went to the whole process group and ended the workers
        return _leave_interrupted(stage, workspace, stage.signals.received)
    except OSError:
        stage.log(traceback.format_exc().rstrip())
        raise
    except (UserError, StageFailure):
        if not starts_again():  # the next start of torchrun would not repeat --force and find the stage up to date
            workspace.discard_if_empty()
            workspace.give_up_force()
        raise
    except Exception as error:
        if is_out_of_memory(error):  # torch's errors are no MemoryError
            stage.log(traceback.format_exc().rstrip())
            raise
        if tells_of_a_full_disk(error):  # safetensors, tokenizers and others wrap it in errors of their own
            stage.log(traceback.format_exc().rstrip())
            raise OSError(errno.ENOSPC, str(error)) from None
        stage.say(traceback.format_exc().rstrip())
        raise StageFailure(
            f"{stage.name} failed by a defect or an unforeseen condition (traceback above and in"
            f" {stage.folder / LOG}); finished units are kept"
        ) from None
    manifest = Manifest(
        stage=stage.name,
        fingerprint=as_finished(stage, fingerprint),
        files=files,
        ledger=ledger.to_json(),
        result=stage.result,
        notes=stage.all_notes(),
        exit_code=stage.exit_code,
        run=describe_run(started, peak.stop(), workspace.resuming, fingerprint)
        | describe_engine(stage)
        | describe_request(fingerprint, asked_for),
    )
    workspace.publish(manifest)
    print_card(stage, stage.spec)
    return stage.exit_code


def _leave_interrupted(stage: Stage, workspace: Workspace, signal_number: int) -> int:
    workspace.journal.close()
    stage.say(
        f"{stage.name}: interrupted, everything finished so far is saved; continue with:"
        f" {repairing_command(stage.name, stage.arguments + stage.own_arguments)}"
    )
    return 128 + signal_number
