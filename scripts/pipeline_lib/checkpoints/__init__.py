"""Checkpoints that survive a kill at any instant and hold no pickle; see folders.py for the format."""

from .background import BackgroundSaver
from .disk_errors import as_os_errors
from .folders import (
    CheckpointError,
    LoadedCheckpoint,
    Retention,
    Surveyed,
    checkpoint_name,
    load_checkpoint,
    load_state,
    newest_step_at_a_glance,
    newest_valid_checkpoint,
    prune,
    save_checkpoint,
    survey,
    valid_checkpoints,
)
from .optimizer_states import (
    OptimizerLoadReport,
    load_optimizer_state_by_name,
    optimizer_state_by_name,
    plain_name,
)
from .random_states import rng_state, seed_everything, set_rng_state

__all__ = [
    "BackgroundSaver",
    "CheckpointError",
    "LoadedCheckpoint",
    "OptimizerLoadReport",
    "Retention",
    "Surveyed",
    "as_os_errors",
    "checkpoint_name",
    "load_checkpoint",
    "load_optimizer_state_by_name",
    "load_state",
    "newest_step_at_a_glance",
    "newest_valid_checkpoint",
    "optimizer_state_by_name",
    "plain_name",
    "prune",
    "rng_state",
    "save_checkpoint",
    "seed_everything",
    "set_rng_state",
    "survey",
    "valid_checkpoints",
]
