"""Settings of stage 11."""

from typing import Literal

from pydantic import Field, field_validator

from .base import Section

ModelName = Literal["init", "pretrained", "sft", "dpo", "lora"]


class EvaluateSettings(Section):
    """Settings of stage 11."""

    models: list[ModelName] = Field(default=["init", "pretrained", "sft", "dpo", "lora"], min_length=1)
    """Models of this run to evaluate, by the stage that made them."""
    tasks: list[str] = Field(
        default=["python_choice", "arithmetic", "preference", "heldout_docs", "domain"], min_length=1
    )
    """Tasks every model is asked: names of files in tasks_folder."""
    tasks_folder: str = "configs/eval_tasks"
    """Folder of the task files (relative to the project)."""
    skip: list[str] = []
    """Combinations that are not evaluated, written model.task (an untrained model cannot do arithmetic)."""
    comparisons: list[str] = ["pretrained-vs-init", "sft-vs-pretrained", "dpo-vs-sft", "lora-vs-dpo"]
    """Pairs of models compared item by item, written first-vs-second; the difference is first minus second."""
    limit: int | None = Field(default=None, ge=1)
    """Largest number of items per task, a seeded sample; all items when not given."""
    limits: dict[str, int] = {}
    """Largest number of items of single tasks, overriding limit."""
    document_bytes: int | None = Field(default=None, ge=64)
    """Length in UTF-8 bytes to which documents scored as a whole are cut; whole documents when not given."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence level of all intervals (a probability)."""
    batch_tokens: int = Field(default=2048, ge=1)
    """Padded tokens per forward pass."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models run; auto takes a GPU if there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the weights; auto is float32 on a CPU and as saved on a GPU."""

    @field_validator("comparisons")
    @classmethod
    def _two_models(cls, value: list[str]) -> list[str]:
        known = ModelName.__args__
        for pair in value:
            first, separator, second = pair.partition("-vs-")
            if not separator or first not in known or second not in known or first == second:
                raise ValueError(f"{pair!r} is not first-vs-second with two of {', '.join(known)}")
        return value

    @field_validator("skip")
    @classmethod
    def _model_and_task(cls, value: list[str]) -> list[str]:
        for pair in value:
            if pair.partition(".")[0] not in ModelName.__args__ or not pair.partition(".")[2]:
                raise ValueError(f"{pair!r} is not model.task with a model of {', '.join(ModelName.__args__)}")
        return value

    @field_validator("limits")
    @classmethod
    def _positive(cls, value: dict[str, int]) -> dict[str, int]:
        for task, limit in value.items():
            if limit < 1:
                raise ValueError(f"the limit of {task} must be at least 1; leave the task out to skip it")
        return value
