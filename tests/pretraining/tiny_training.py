"""A tiny run in this process, for tests of the loop and of the step that do not need the whole stage."""

import time
from pathlib import Path
from types import SimpleNamespace

import torch

from pipeline_lib.checkpoints import seed_everything
from pipeline_lib.config.model import ModelSettings
from pipeline_lib.config.pretrain import PretrainSettings
from pipeline_lib.models.initialise import build_model
from pipeline_lib.models.shapes import resolve_shape
from pipeline_lib.packing.reader import PackedCache
from pipeline_lib.pretraining.attention import use_attention
from pipeline_lib.pretraining.batches import PackedData
from pipeline_lib.pretraining.choices import Choices
from pipeline_lib.pretraining.distribution import Processes, alone
from pipeline_lib.pretraining.forward import TokenLoss
from pipeline_lib.pretraining.horizon import resolve_horizon
from pipeline_lib.pretraining.loop import optimizer_step
from pipeline_lib.pretraining.optimizers import make_optimizers
from pipeline_lib.pretraining.run_state import TrainingRun

SPECIAL = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
SETTINGS = PretrainSettings(tokens=5120, batch_tokens=512, micro_batch=8, dtype="float32", compile="off")


def nothing(loss: float, norm: float) -> None:
    """What has to be waited for before an update when no checkpoint is being written."""


def make_model(tied: bool = False, dtype: str = "float32"):
    settings = ModelSettings(shape={"layers": 2, "width": 32, "heads": 2}, tie_embeddings=tied, dtype=dtype)
    return build_model(resolve_shape(settings, 400, 64), settings, SPECIAL, seed=3)


def make_run(settings: PretrainSettings = SETTINGS, processes: Processes | None = None) -> TrainingRun:
    model = make_model()
    horizon = resolve_horizon(settings, 64, 32, 30_000)
    optimizers = make_optimizers(model, settings.optimizer, horizon.rates, torch.float32)
    seed_everything(0)
    choices = Choices()
    use_attention(model, choices.attention)
    network = TokenLoss(model, choices.attention, "none", torch.float32)
    return TrainingRun(model, network, optimizers, horizon, choices, processes or alone())


def open_data(cache: Path) -> PackedData:
    return PackedData(PackedCache(cache), 64, 8, seed=1, validation_tokens=500)


def first_batches(data: PackedData, count: int):
    stream = data.training_batches(None)
    return [next(stream) for _ in range(count)]


def step_gradients(run: TrainingRun, batch, settings: PretrainSettings):
    """Do a step and return (loss, reported norm, the gradients that reached the optimizers)."""
    gradients = {}
    muon_step = run.optimizers["muon"].step

    def remember():
        gradients.update({name: parameter.grad.clone() for name, parameter in run.model.named_parameters()})
        muon_step()

    run.optimizers["muon"].step = remember
    return *optimizer_step(run, batch, settings, nothing), gradients


class BareStage:
    """What the loop asks of a stage, without a run folder around it."""

    interrupted = False
    signals = SimpleNamespace(received=None)

    def __init__(self, settings: PretrainSettings, work: Path):
        self.settings, self.work, self.started, self.said = settings, work, time.monotonic(), []
        self.say = self.note = self.said.append

    def stop_if_interrupted(self) -> None:
        pass
