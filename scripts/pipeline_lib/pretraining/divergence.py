"""A run that is not finite any more: how that is noticed, and the way back to where it still was.

Loss and gradient of a step depend on the weights before it and on its batch, and on nothing else. So when the newest
checkpoint stands right before a step that is not finite, every start ends at that step again: a lower learning rate
only changes what comes after it. The way back is an older checkpoint, from where the lower rate leads elsewhere.
Weights that are not finite themselves are never saved (saving.py): nothing could go on from them.
"""

from __future__ import annotations

import torch

from pipeline_lib.checkpoints import BackgroundSaver, valid_checkpoints

from .distribution import local
from .run_state import TrainingRun


class NotFinite(FloatingPointError):
    """A loss or gradient norm that is NaN or infinite; the weights have not been touched."""

    def __init__(self, loss: float, norm: float):
        super().__init__(f"loss {loss}, gradient norm {norm}")
        self.loss, self.norm = loss, norm


def broken_weights(run: TrainingRun) -> list[str]:
    """Return the names of the parameters that hold a number that is not finite; with fsdp all processes must ask."""
    named = list(run.model.named_parameters())
    broken = torch.zeros(len(named), dtype=torch.int64, device=run.device)
    for place, (_, weight) in enumerate(named):
        mine = local(weight.detach())
        if mine.numel():
            # The extremes pass NaN on and take no memory, of which there may be none left where a run saves and ends.
            least, greatest = torch.aminmax(mine)
            broken[place] = ~(torch.isfinite(least) & torch.isfinite(greatest))
    if run.processes.strategy == "fsdp":
        broken = run.processes.sum(broken)
    return [name for (name, _), count in zip(named, broken.tolist(), strict=True) if count]


def diverged(run: TrainingRun, error: NotFinite, broken: list[str], saver: BackgroundSaver, bundled: bool) -> str:
    """Say what was saved, what helps and what to look at when the step after `run.step` was not finite.

    broken: names of weights that were not finite before it; bundled: whether `--replay` can do the step again.
    """
    saved = f"the weights of step {run.step} are saved in {saver.folder}"
    if broken:
        saved = f"{len(broken)} weights are not finite before the step already, first {broken[0]}"
    look = f"; look at the step with --replay {run.step + 1}" if bundled else ""
    return f"training diverged at step {run.step + 1} ({error}); {saved}; {way_back(run, broken, saver)}{look}"


def lost_weights(run: TrainingRun, broken: list[str], saver: BackgroundSaver) -> str:
    """Say what helps when weights that were to be saved are not finite."""
    return (
        f"training diverged: {len(broken)} weights are not finite after step {run.step}, first {broken[0]}, and are not"
        f" saved; {way_back(run, broken, saver)}"
    )


def bad_validation(run: TrainingRun, loss: float, saver: BackgroundSaver) -> str:
    """Say what helps when the validation after `run.step` is not finite."""
    broken = broken_weights(run)
    where = f"; {len(broken)} weights are not finite, first {broken[0]}" if broken else ""
    return f"the validation loss is {loss} after step {run.step}{where}: {way_back(run, broken, saver)}"


def way_back(run: TrainingRun, broken: list[str], saver: BackgroundSaver) -> str:
    """Return what to do when training cannot go on from `run`, after waiting for the save in hand.

    Checkpoints of this step or of later ones lead to the same end and have to go. The first process looks for them.
    """
    if not run.processes.first:
        return "the first process says how to go on"
    if run.step == 0:
        if broken:
            return "make the model again with 04_init_model.py --force"
        return "no update was done, so no learning rate helps: set pretrain.dtype to float32 or change the model"
    saver.finish()
    stuck, older = [], None
    for step, folder in valid_checkpoints(saver.folder):
        if step < run.step:
            older = step
            break
        stuck.append(str(folder))
    if older is None:
        return "there is no older checkpoint to go back to: begin anew with --force and a lower pretrain.optimizer.lr"
    if not stuck:
        return f"the next start goes back to step {older:,}: lower pretrain.optimizer.lr for it"
    return (
        "a lower pretrain.optimizer.lr alone ends here again, since only these weights and the batch decide: first"
        f" remove {' and '.join(stuck)}, so that the next start goes back to step {older:,}, then lower"
        " pretrain.optimizer.lr"
    )
