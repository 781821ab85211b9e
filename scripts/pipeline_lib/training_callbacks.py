"""Callbacks for Hugging Face trainers: a sequence-length curriculum, and the record of out-of-memory events."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .oom_handler import OOMHandler
from .stage.atomic import write_json_atomic

_STATE_FILE = "curriculum_state.json"
_DEFAULT_LENGTH = 2048


class CurriculumCallback(TrainerCallback):
    """Trains on short sequences first: stops and saves at each boundary, so that the next start loads longer ones.

    curriculum_config: `schedule`, a list of {"steps": first step of the next stage, "seq_length": tokens}, and
    `data_pattern`, `val_pattern` with `{seq_length}` in them. A Trainer cannot change its data set while it runs, so
    `auto_stop_at_boundary: false` is refused rather than ignored.
    """

    def __init__(self, curriculum_config: dict[str, Any], output_dir: str):
        """Raises ValueError for a schedule whose steps do not increase, or auto_stop_at_boundary false."""
        self.schedule: list[dict[str, int]] = list(curriculum_config.get("schedule", []))
        self.data_pattern: str = curriculum_config.get("data_pattern", "data/packed/train_{seq_length}")
        self.val_pattern: str | None = curriculum_config.get("val_pattern")
        self.output_dir = Path(output_dir)
        steps = [stage["steps"] for stage in self.schedule]
        if steps != sorted(set(steps)):
            raise ValueError(f"the steps of a curriculum must increase, got {steps}")
        if not curriculum_config.get("auto_stop_at_boundary", True):
            raise ValueError(
                "auto_stop_at_boundary false cannot be honoured: a Trainer keeps its data set"
            )
        self.current_stage = 0

    def get_current_stage(self, step: int) -> tuple[int, int]:
        """Return (index, sequence length in tokens) of the stage at `step`; (0, 2048) without a schedule."""
        if not self.schedule:
            return 0, _DEFAULT_LENGTH
        for index, stage in enumerate(self.schedule):
            if step < stage["steps"]:
                return index, stage["seq_length"]
        return len(self.schedule) - 1, self.schedule[-1]["seq_length"]

    def data_path(self, step: int) -> Path:
        """Return the training data of the stage at `step`. Raises FileNotFoundError when it was not made."""
        path = Path(self.data_pattern.format(seq_length=self.get_current_stage(step)[1]))
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; plan that context length with 03_tokenize_and_pack.py")
        return path

    def resume_step(self) -> int:
        """Return the step the last boundary was reached at, from the state file; 0 when there is none."""
        path = self.output_dir / _STATE_FILE
        return int(json.loads(path.read_text("utf-8"))["global_step"]) if path.is_file() else 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the stage from the trainer's own step, which is right after a resume from any folder."""
        self.current_stage, length = self.get_current_stage(state.global_step)
        print(
            f"curriculum: stage {self.current_stage + 1} of {max(1, len(self.schedule))}, {length} tokens per sequence"
        )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """At a boundary write the state file and ask the trainer to save and stop."""
        index, length = self.get_current_stage(state.global_step)
        if index > self.current_stage:
            self.current_stage = index
            self.output_dir.mkdir(parents=True, exist_ok=True)
            content = {
                "current_stage": index,
                "current_seq_length": length,
                "global_step": state.global_step,
                "schedule": self.schedule,
            }
            write_json_atomic(self.output_dir / _STATE_FILE, content)
            control.should_save = True
            control.should_training_stop = True
        return control


class OOMRecoveryCallback(TrainerCallback):
    """Trades batch size against gradient accumulation when memory runs out, and logs how often it did.

    A callback cannot catch an exception: the loop that catches it calls `record(error, args)` and repeats the batch.
    """

    def __init__(self, max_accumulation: int = 64):
        self.max_accumulation = max_accumulation
        self.handler: OOMHandler | None = None

    def record(self, error: BaseException, args: TrainingArguments) -> bool:
        """Halve the per-device batch and double the accumulation, so that the global batch stays what it was.

        Returns False, and changes nothing, when the error is not an out-of-memory error, the batch cannot be halved
        evenly, or the accumulation would pass `max_accumulation`.
        """
        if self.handler is None:
            self.handler = OOMHandler(args.per_device_train_batch_size, cooldown_seconds=0.0, max_retries=64)
        size, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
        if size % 2 or accumulation * 2 > self.max_accumulation or not self.handler.handle_oom(error):
            return False
        args.per_device_train_batch_size = size // 2
        args.gradient_accumulation_steps = accumulation * 2
        return True

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Add the number of events to the trainer's log once there has been one."""
        if logs is not None and self.handler is not None and self.handler.oom_count:
            logs["oom_recovery/total_events"] = self.handler.oom_count
