"""The stage contract: what makes a numbered script safe to kill, resume and trust. runner.py tells the whole story."""

from .atomic import atomic_path, link_or_copy, write_bytes_atomic, write_json_atomic
from .digests import bytes_digest, file_digest, json_digest
from .errors import StageFailure, StageInterrupted, UserError
from .inputs import StageInput
from .ledger import Ledger
from .manifest import TIMING
from .parallel import available_cores, ordered_map, ordered_threads
from .plan import Estimate
from .runner import GO_ON, ActionContext, run_stage
from .stage import Stage, Unit

__all__ = [
    "GO_ON",
    "TIMING",
    "ActionContext",
    "Estimate",
    "Ledger",
    "Stage",
    "StageFailure",
    "StageInput",
    "StageInterrupted",
    "Unit",
    "UserError",
    "atomic_path",
    "available_cores",
    "bytes_digest",
    "file_digest",
    "json_digest",
    "link_or_copy",
    "ordered_map",
    "ordered_threads",
    "run_stage",
    "write_bytes_atomic",
    "write_json_atomic",
]
