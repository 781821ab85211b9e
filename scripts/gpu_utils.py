"""The public names of the older `gpu_utils` module, each from its home in pipeline_lib; nothing is defined here.

A name is imported when it is first asked for (PEP 562), so that asking for one does not load torch for all.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "GPUInfo": "gpu_detection",
    "detect_gpu_type": "gpu_detection",
    "print_gpu_info": "gpu_detection",
    "setup_torch_backends": "gpu_detection",
    "check_fp8_available": "gpu_fp8",
    "get_fp8_accelerator": "gpu_fp8",
    "OOMHandler": "oom_handler",
    "get_safe_batch_size": "memory_estimate",
    "oom_recovery_context": "oom_handler",
    "with_oom_retry": "oom_handler",
    "CurriculumCallback": "training_callbacks",
    "OOMRecoveryCallback": "training_callbacks",
    "check_checkpoint_exists": "training_validation",
    "check_tokenizer_exists": "training_validation",
    "validate_training_prerequisites": "training_validation",
    "load_compiled_checkpoint": "model_utils",
    "unwrap_compiled_model": "model_utils",
    "get_optimizer_name": "kernel_optimizations",
    "setup_kernel_optimizations": "kernel_optimizations",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gpu_utils' has no attribute {name!r}")
    return getattr(import_module(f"pipeline_lib.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
