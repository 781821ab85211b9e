"""What this machine's accelerator is and can do, told in seven facts, and the torch switches that suit it."""

from typing import TypedDict

# 4 sequences of 2,048 tokens fit beside a 1 B model on a CPU machine of 16 GB; 8 is the same rule for a small GPU.
_BATCH_WITH_GPU, _BATCH_WITHOUT = 8, 4


class GPUInfo(TypedDict):
    """Facts about GPU 0, or about having none: then gpu_name is "CPU" and compute_capability "N/A"."""

    gpu_name: str
    compute_capability: str
    is_h100: bool
    is_a100: bool
    fp8_available: bool
    compile_mode: str
    batch_size: int


def detect_gpu_type() -> GPUInfo:
    """Return what device 0 is.

    is_h100: the H100 or a later data-centre generation (compute capability 9 and above); is_a100: capability 8.0;
    compile_mode: the torch.compile mode worth its compile time there; batch_size: a first guess in sequences, which
    `memory_estimate.get_safe_batch_size` replaces by a computed one.
    """
    import torch

    if not torch.cuda.is_available():
        return GPUInfo(
            gpu_name="CPU",
            compute_capability="N/A",
            is_h100=False,
            is_a100=False,
            fp8_available=False,
            compile_mode="default",
            batch_size=_BATCH_WITHOUT,
        )
    from .gpu_fp8 import check_fp8_available

    name = torch.cuda.get_device_name(0)
    major, minor = torch.cuda.get_device_capability(0)
    is_h100 = "H100" in name or major >= 9
    return GPUInfo(
        gpu_name=name,
        compute_capability=f"{major}.{minor}",
        is_h100=is_h100,
        is_a100="A100" in name or (major, minor) == (8, 0),
        fp8_available=check_fp8_available(),
        compile_mode="max-autotune" if is_h100 else "default",
        batch_size=_BATCH_WITH_GPU,
    )


def print_gpu_info(info: GPUInfo) -> None:
    """Print the facts, one line each."""
    print(f"GPU:                {info['gpu_name']}")
    print(f"compute capability: {info['compute_capability']}")
    print(f"FP8 training:       {'available' if info['fp8_available'] else 'not available'}")
    print(f"compile mode:       {info['compile_mode']}")
    print(f"batch size:         {info['batch_size']} sequences to start with")


def setup_torch_backends() -> None:
    """Set the switches that speed up training without changing what it computes beyond TF32 rounding.

    TF32 for float32 matrix products on NVIDIA GPUs (10 bits of mantissa inside the product, float32 sums), cuDNN
    autotuning, and a compiler that neither hides its errors nor recompiles without end. Nothing here affects a CPU's
    numbers.
    """
    import torch
    import torch._dynamo

    # One family of switches only: torch refuses to answer once the older and the newer TF32 settings are mixed.
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch._dynamo.config.capture_scalar_outputs = True
    torch._dynamo.config.assume_static_by_default = False
    torch._dynamo.config.suppress_errors = False
    torch._dynamo.config.cache_size_limit = 64
