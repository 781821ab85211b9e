"""Settings of stage 05: how long, with which optimizer and schedule, and how the run is saved and measured."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from .base import Section


class OptimizerSettings(Section):
    """The optimizer; learning rates that are not given follow from the model's width (docs/models.md)."""

    name: Literal["muon", "adamw", "adamw_8bit"] = "muon"
    """Muon for the matrices of the blocks and AdamW for the rest, AdamW for all, or AdamW with moments in 8 bits."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of the matrices of the blocks."""
    embedding_lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of the input embedding (and of a tied head)."""
    head_lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of the output head and of the norms."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Decoupled weight decay of the matrices of the blocks; null is 0, norms and embeddings never decay."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's averaging factor of the gradient."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's averaging factor of the squared gradient."""
    eps: float = Field(default=1e-10, gt=0)
    """AdamW's additive constant in the denominator."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Muon's averaging factor of the gradient (Nesterov), once it is warmed up."""
    momentum_warmup_steps: int = Field(default=300, ge=0)
    """Steps in which Muon's momentum rises from 0.85: early gradients change faster than a long average can follow."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Greatest norm of the whole gradient; longer gradients are scaled down to it, null never does."""


class ScheduleSettings(Section):
    """How the learning rates move: up from zero, then as named, as a factor on the peak."""

    name: Literal["wsd", "linear", "cosine"] = "linear"
    """After the warm-up: straight down, down a cosine, or constant and then straight down (wsd)."""
    warmup_fraction: float = Field(default=0.025, ge=0, le=1)
    """Share of the steps in which the factor rises linearly from 0 to 1."""
    decay_fraction: float = Field(default=0.4, ge=0, le=1)
    """Share of the steps in which `wsd` comes down at the end."""
    final_factor: float = Field(default=0.0, ge=0, le=1)
    """Factor at the end of the run."""


class CurriculumStage(Section):
    """One stage of the curriculum."""

    until: float = Field(gt=0, le=1)
    """Share of the horizon's tokens at which the stage ends; 1 for the last stage."""
    context: int | None = Field(default=None, ge=2)
    """Length of its sequences in tokens; stage 03 needs a plan for it, pretrain.context when not given."""
    batch_tokens: int | None = Field(default=None, gt=0)
    """Tokens per optimizer step of this stage; that of the whole run when not given."""


class PretrainSettings(Section):
    """Settings of stage 05: how long, with which optimizer and schedule, and how the run is saved and measured."""

    context: int | None = Field(default=None, ge=2)
    """Length of a training sequence in tokens; stage 03 needs a plan for it, its first one is used when not given."""
    tokens: int | None = Field(default=None, gt=0)
    """Horizon in tokens, repeats included; tokens_per_parameter decides when not given."""
    tokens_per_parameter: float = Field(default=20.0, gt=0)
    """Horizon in tokens per parameter that costs FLOPs (blocks and head); 20 is Chinchilla's compute-optimal ratio."""
    epochs: float | None = Field(default=None, gt=0)
    """Horizon in passes over the training text, instead of one in tokens."""
    full_data_tokens: int | None = Field(default=None, gt=0)
    """Tokens the training text is expected to have when all of it is packed; epochs and warm-up count with it."""
    growing_input: bool = False
    """Whether training may begin while stage 03 is still packing (pack.part_bytes): the first pass reads part after
    part, validation reads the first part, and `epochs` counts with a size estimated from it."""
    growing_patience_seconds: float = Field(default=60.0, ge=0)
    """How long training that has read everything waits for a stage 03 that nobody runs, in seconds, before it saves
    and leaves."""
    max_steps: int | None = Field(default=None, ge=1)
    """Upper limit of the horizon in optimizer steps; the schedule ends there."""
    batch_tokens: int | None = Field(default=None, gt=0)
    """Tokens per optimizer step; follows from the horizon when not given (docs/models.md)."""
    curriculum: list[CurriculumStage] = []
    """Stages of context length and batch size, in order; one stage over the whole horizon when empty."""
    micro_batch: int = Field(default=8, ge=1)
    """Sequences that go through the model at once, halved when memory runs out; changes speed, not the gradient."""
    micro_batch_grows_after: int = Field(default=200, ge=1)
    """Steps without running out of memory after which a halved micro-batch is doubled again."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """Optimizer and learning rates."""
    schedule: ScheduleSettings = ScheduleSettings()
    """Course of the learning rates."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the matrix products; auto measures both on this machine, weights are always float32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether to compile the model; auto measures a step and compiles when the run is long enough to pay for it."""
    attention: Literal["auto", "documents", "flash", "flex", "dense"] = "auto"
    """Attention inside documents: per document on a CPU, FlashAttention or FlexAttention on a GPU, or a dense mask."""
    fp8: Literal["auto", "on", "off", "emulate"] = "auto"
    """FP8 linear layers where a timed probe says faster (auto; on insists on such a GPU), or rounded only (emulate)."""
    fp8_recipe: Literal["tensorwise", "rowwise"] = "tensorwise"
    """How FP8 operands are scaled: one scale per tensor is faster, one per row more precise."""
    use_liger_kernel: bool = False
    """Whether to use Liger's fused GPU kernels for norms, positions, feed-forward and loss; not with use_cce."""
    use_cce: bool = False
    """Whether to use Cut Cross-Entropy's fused GPU loss; not with use_liger_kernel."""
    strategy: Literal["auto", "single", "ddp", "fsdp"] = "auto"
    """How processes started by torchrun share the work: auto is single for one, and for several ddp where the training
    state and a sequence fit one device by estimate, else fsdp."""
    device_memory_gb: float | None = Field(default=None, gt=0)
    """Memory of one device in GB (10^9 bytes) that strategy auto reckons with; null asks the machine."""
    loss_chunk: int = Field(default=2048, ge=1)
    """Positions whose logits are held at once, in tokens; bounds memory at loss_chunk x vocabulary numbers."""
    validation_steps: int | None = Field(default=None, ge=1)
    """Steps between two validations; besides, the first and the last state are always validated."""
    validation_tokens: int = Field(default=1_000_000, gt=0)
    """Size of the validation sample in tokens, from the start of stage 03's validation split."""
    checkpoint_seconds: float = Field(default=600.0, ge=0)
    """Time between two checkpoints in seconds; a kill loses at most this much work."""
    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Steps between two checkpoints, in addition to those by time."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Number of newest checkpoints to keep."""
    keep_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints that are kept for good, in addition to the newest and the best one."""
    keep_best: bool = True
    """Whether to save after the best validation so far and to keep that checkpoint until a better one."""
    background_saving: bool = True
    """Whether to write checkpoints while training goes on; costs a copy of weights and moments in host memory."""
    time_limit_seconds: float | None = Field(default=None, gt=0)
    """Wall time after which this start of the stage saves and leaves like on SIGTERM, in seconds."""
    keep_incidents: int = Field(default=3, ge=0)
    """Number of bundles to keep of steps that were a spike or not finite, for `--replay`; each is a checkpoint."""
    tensorboard: bool = True
    """Whether to write TensorBoard event files beside metrics.jsonl."""
    trackers: list[str] = []
    """More places for the curves: names that Accelerate knows (wandb, mlflow ...), or module:Class of a tracker."""
    log_seconds: float = Field(default=10.0, ge=0)
    """Time between two progress lines, in seconds."""
    block_norm_steps: int | None = Field(default=100, ge=1)
    """Steps between two records of each block's gradient norm in the metrics; null never."""
    spike_deviations: float | None = Field(default=8.0, gt=0)
    """Height at which a loss or gradient norm is called a spike, in robust standard deviations; null never."""

    @field_validator("curriculum")
    @classmethod
    def _stages_follow_each_other(cls, value: list[CurriculumStage]) -> list[CurriculumStage]:
        ends = [stage.until for stage in value]
        if ends and (ends != sorted(set(ends)) or ends[-1] != 1):
            raise ValueError(f"the stages must end later and later, the last one at 1, not at {ends}")
        return value

    MEANS = ("time_limit_seconds", "log_seconds")

    @model_validator(mode="after")
    def _one_horizon(self) -> "PretrainSettings":
        if self.epochs is not None and self.tokens is not None:
            raise ValueError("tokens and epochs both set the horizon: give one of them")
        if self.full_data_tokens is not None and self.epochs is None:
            raise ValueError("full_data_tokens says how long an epoch will be: give epochs too")
        return self

    @model_validator(mode="after")
    def _one_replacement_of_the_loss(self) -> "PretrainSettings":
        if self.use_liger_kernel and self.use_cce:
            raise ValueError("use_liger_kernel and use_cce both replace the loss: switch on one of them")
        return self

    @field_validator("compile", "fp8", mode="before")
    @classmethod
    def _yaml_spells_on_and_off_as_booleans(cls, value: object) -> object:
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value
