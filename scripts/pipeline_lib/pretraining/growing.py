"""Training beside a stage 03 that is still at work: when everything published is read, wait for the next part.

The parts are read one after the other (PackedData with `growing`), so a step reads the same sequences whether its part
was published an hour ago or this second, and the final weights are those of a run that began after stage 03 had ended.
Training that has reached its horizon waits for the end of stage 03 before it is published: its ledger takes over all
the text that was packed, and its fingerprint names the finished cache.

A stage 03 that nobody runs any more is given `growing_patience_seconds` to be started again; then the run saves an
ordinary checkpoint and leaves with the command to type.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from pipeline_lib.packing.open_cache import open_packed
from pipeline_lib.stage import Stage, StageInterrupted, UserError
from pipeline_lib.stage.inputs import RunningInput, read_so_far
from pipeline_lib.stage.manifest import MANIFEST, Manifest

from .batches import PackedData
from .distribution import Processes, interrupted
from .run_state import TrainingRun

_POLL_SECONDS = 0.2


def wait_for_text(
    stage: Stage,
    data: PackedData,
    processes: Processes,
    enough: Callable[[], bool],
    what: str,
    save: Callable[[], object],
) -> None:
    """Replace `data.cache` by what stage 03 has published since, until `enough()` in every process.

    what: the first half of the sentence that says so; save: is called before the wait ends early. With several
    processes all must call it: each looks for itself, and none goes on before all have seen the same. Raises
    StageInterrupted on a signal or at the time limit of the run, UserError when nobody runs stage 03.
    """
    seen = time.monotonic()
    pause = 0.0
    while not processes.smallest(int(enough())):
        if not pause:
            stage.say(f"  {what}; waiting for stage 03")
        time.sleep(pause)
        pause = _POLL_SECONDS
        packed = stage.inputs["03_packed"]
        if not packed.finished and _has_more(packed):
            stage.input_again("03_packed")  # the one at hand names the files of its time, which can still be read
            packed, data.cache = open_packed(stage)
        now = time.monotonic()
        if packed.finished or packed.at_work:
            seen = now
        limit = stage.settings.time_limit_seconds
        late = limit is not None and now - stage.started > limit
        if interrupted(stage, processes) or processes.share(late):
            save()
            stage.stop_if_interrupted()
            raise StageInterrupted(signal.SIGTERM)
        if processes.share(now - seen > stage.settings.growing_patience_seconds):
            save()
            raise UserError(
                f"{what}, and stage 03 is not finished while nobody works at it; continue it with: {packed.command},"
                " then start this again"
            )


def _has_more(packed: RunningInput) -> bool:
    """Say whether stage 03 has published something that `packed` does not know, or has finished."""
    now = read_so_far(packed.path)
    if now is not None:
        return now.files != packed.manifest.files
    return Manifest.read(packed.stage_folder / MANIFEST) is not None


def await_all_text(stage: Stage, run: TrainingRun, data: PackedData) -> None:
    """Wait until stage 03 has finished, and note the estimate of the text's size beside the truth."""
    what = f"training is done and saved after step {run.step:,}"
    wait_for_text(stage, data, run.processes, lambda: not data.cache.unfinished, what, lambda: None)
    if stage.settings.growing_input:
        estimate, truth = data.cache.estimated_tokens(), data.cache.tokens()
        stage.note(
            f"the training text was estimated at {estimate:,} tokens from its first part and has {truth:,}"
            f" ({estimate / truth - 1:+.1%} off)"
        )
