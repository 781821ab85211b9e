"""The whole configuration of a run: one YAML, one section per stage."""

from pydantic import Field

from .base import Section
from .clean import CleanSettings
from .download import DownloadSettings
from .dpo import DpoSettings
from .dpo_data import DpoDataSettings
from .evaluate import EvaluateSettings
from .gates import GatesSettings
from .lora import LoraSettings
from .model import ModelSettings
from .pack import PackSettings
from .patterns import RUN_NAME
from .pretrain import PretrainSettings
from .reasoning_data import ReasoningDataSettings
from .scale_out import ScaleOutSettings
from .sft import SftSettings
from .sft_data import SftDataSettings


class RunConfig(Section):
    """One run of the pipeline."""

    run: str | None = Field(default=None, pattern=RUN_NAME)
    """Name of the run and of its folder below runs/; the YAML's file name when not given."""
    seed: int = Field(default=42, ge=0)
    """Seed of every random choice in every stage."""
    threads: int | None = Field(default=None, ge=1)
    """Number of CPU cores to use; all that this process may use when not given."""

    scale_out: ScaleOutSettings = ScaleOutSettings()
    """Stages 01 and 02: who does the work, this machine, Slurm or Ray; the outputs are the same."""

    packed: str | None = None
    """Folder of a finished packed cache (another run's 03_packed) to start from instead of stages 02 and 03."""

    download: DownloadSettings = DownloadSettings()
    """Stage 01: where the data comes from."""
    clean: CleanSettings = CleanSettings()
    """Stage 02: what is repaired and what is removed."""
    pack: PackSettings = PackSettings()
    """Stage 03: tokenizer and packing."""
    model: ModelSettings = ModelSettings()
    """Stage 04: shape of the model."""
    pretrain: PretrainSettings = PretrainSettings()
    """Stage 05: pretraining."""
    sft_data: SftDataSettings = SftDataSettings()
    """Stage 06: instruction data."""
    reasoning_data: ReasoningDataSettings = ReasoningDataSettings()
    """Stage 06: reasoning data."""
    sft: SftSettings = SftSettings()
    """Stage 07: supervised fine-tuning."""
    dpo_data: DpoDataSettings = DpoDataSettings()
    """Stage 08: preference pairs."""
    dpo: DpoSettings = DpoSettings()
    """Stage 09: direct preference optimisation."""
    lora: LoraSettings = LoraSettings()
    """Stage 10: low-rank adaptation to a domain."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """Stage 11: evaluation."""
    gates: GatesSettings = GatesSettings()
    """Stage 12: gates."""
