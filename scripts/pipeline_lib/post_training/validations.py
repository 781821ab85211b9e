"""Validations while training runs: how the last and the best one came out, and the weights of the best one.

The best is the one with the lowest validation loss, the earlier one of two that are equal. The model that training
starts from is measured too, but is no candidate: a stage that gives back its input would look as if it had trained.

All of it is part of the resumable state. The best weights lie in the checkpoint itself (`best.safetensors`), not in a
folder of their own: whichever checkpoint is the newest valid one, it holds the best weights of its own past, and a kill
between two files cannot part them. A checkpoint whose own step is the best does not hold them twice.
Cost: a copy of the trainable weights in host memory, and up to a third more to write per checkpoint.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipeline_lib.checkpoints import LoadedCheckpoint
from pipeline_lib.config.fine_tuning import FineTuningSettings
from pipeline_lib.stage import Stage, StageFailure, UserError

if TYPE_CHECKING:
    from torch import Tensor

LOSS = "val_loss"
"""The figure that decides, lower is better: nats per token (07, 10), the mean loss of a pair (09)."""

_GROUP = "best"

_HELD_OUT = {"sft": "sft_data.val_fraction", "dpo": "dpo_data.val_fraction", "lora": "lora.val_fraction"}
"""By section of a stage: the setting of the share that is held out for it."""


class LossDiverged(StageFailure):
    """A loss is not finite: the weights are lost, and a checkpoint of them would be of no use."""


@dataclass(frozen=True)
class Validation:
    """What a model scored after `step` optimizer steps."""

    step: int
    figures: dict[str, float]


class Validations:
    """The last and the best validation of a run so far, and the best weights where `keep_best` asks for them."""

    def __init__(self, settings: FineTuningSettings):
        self.every, self.keep_best = settings.eval_steps, settings.keep_best
        self.last: Validation | None = None
        self.best: Validation | None = None
        self._best_weights: dict[str, Tensor] = {}

    @property
    def last_step(self) -> int:
        """Return the step of the last validation, 0 before the first."""
        return self.last.step if self.last else 0

    def is_due(self, step: int, steps: int) -> bool:
        """Say whether the weights after `step` of `steps` are still to be validated; the last ones always are."""
        if self.every is None or (step % self.every and step != steps):
            return False
        return step > self.last_step

    def record(self, step: int, figures: dict[str, float], weights: dict[str, Tensor]) -> None:
        """Take the figures of a step and, if they are the best so far, a copy of the trainable weights, by name."""
        self.last = Validation(step, figures)
        if self.best is not None and figures[LOSS] >= self.best.figures[LOSS]:
            return
        self.best = self.last
        if self.keep_best:
            self._best_weights = {}  # before the copy, so that there are never two
            self._best_weights = {name: weight.detach().to("cpu", copy=True) for name, weight in weights.items()}

    # -- in a checkpoint -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint's JSON holds."""
        return {name: found and asdict(found) for name, found in (("last", self.last), ("best", self.best))}

    def tensors(self, step: int) -> dict[str, dict[str, Tensor]]:
        """Return the group of tensors to add to the checkpoint of `step`, if one is needed."""
        if not self._best_weights or self.best.step == step:
            return {}
        return {_GROUP: self._best_weights}

    def load(self, checkpoint: LoadedCheckpoint) -> None:
        """Take over what a checkpoint holds."""
        state = checkpoint.state["validations"]
        self.last, self.best = (state[name] and Validation(**state[name]) for name in ("last", "best"))
        if self.keep_best and self.best is not None:
            own = self.best.step == checkpoint.step
            self._best_weights = checkpoint.tensors["model" if own else _GROUP]

    # -- at the end ------------------------------------------------------------------------------------------------

    def put_final_weights(self, weights: dict[str, Tensor]) -> None:
        """Overwrite the trained weights with the best ones where `keep_best` asks for them."""
        import torch

        with torch.no_grad():
            for name, best in self._best_weights.items():
                weights[name].copy_(best)

    def result(self) -> dict[str, Any]:
        """Return what the card shows: the final model's figures, which step was best, and which model is final."""
        return {
            "after": (self.best if self.keep_best else self.last).figures,
            "best": {
                "step": self.best.step,
                LOSS: self.best.figures[LOSS],
                "last_step": self.last.step,
                f"last_{LOSS}": self.last.figures[LOSS],
            },
            "final_model": "best" if self.keep_best else "last",
        }


def check_held_out(stage: Stage, examples: int) -> None:
    """Raise UserError when validation during training is asked for and nothing is held out."""
    every, section = stage.settings.eval_steps, stage.spec.section
    if every is not None and not examples:
        setting = f"{section}.eval_steps"
        raise UserError(
            f"{setting} is {every}, but no example is held out; raise {_HELD_OUT[section]}, or set {setting} to null"
        )
