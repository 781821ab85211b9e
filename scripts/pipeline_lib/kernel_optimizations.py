"""Fused GPU kernels and optimizer names: asked for, checked, and either set up or refused aloud."""

import importlib
import importlib.util

_LIGER_PATCHES = {
    "llama": "apply_liger_kernel_to_llama",
    "mistral": "apply_liger_kernel_to_mistral",
    "gemma": "apply_liger_kernel_to_gemma",
    "qwen2": "apply_liger_kernel_to_qwen2",
    "qwen3": "apply_liger_kernel_to_qwen3",
}


class KernelsUnavailable(RuntimeError):
    """Fused kernels were asked for and cannot run here."""


def setup_kernel_optimizations(use_liger_kernel: bool = False, use_cce: bool = False, model_type: str = "llama") -> str:
    """Patch the transformers model classes with fused kernels; call it before the model is created.

    use_liger_kernel: Liger's RMSNorm, RoPE, SwiGLU and fused linear cross-entropy; use_cce: Apple's Cut Cross-Entropy,
    which never holds the logits. Both replace the loss, so only one can be on. Cut Cross-Entropy patches nothing: who
    computes the loss calls `cut_cross_entropy.linear_cross_entropy` (the package's own patches of transformers are not
    in its wheel and do not load with transformers 5). Returns the name of what was set up: "liger", "cce" or "none".
    Raises ValueError for both at once or an unknown model type, KernelsUnavailable (a RuntimeError) when the package or
    the GPU is missing or the package does not load.
    """
    if use_liger_kernel and use_cce:
        raise ValueError("use_liger_kernel and use_cce both replace the loss: choose one")
    if not use_liger_kernel and not use_cce:
        return "none"
    if model_type not in _LIGER_PATCHES:
        raise ValueError(f"unknown model_type {model_type!r}; known: {', '.join(sorted(_LIGER_PATCHES))}")
    package, hint = ("liger_kernel", "liger-kernel") if use_liger_kernel else ("cut_cross_entropy", "cut-cross-entropy")
    if importlib.util.find_spec(package) is None:
        raise KernelsUnavailable(f"{package} is not installed: pip install {hint} (see requirements-gpu.txt)")
    import torch

    if not torch.cuda.is_available():
        raise KernelsUnavailable(f"{package} needs a GPU; switch it off on this machine")
    try:
        if use_liger_kernel:
            import liger_kernel.transformers

            getattr(liger_kernel.transformers, _LIGER_PATCHES[model_type])()
            return "liger"
        from cut_cross_entropy import linear_cross_entropy  # noqa: F401 (is it there?)
    except (ImportError, AttributeError, OSError) as error:
        raise KernelsUnavailable(f"{package} does not load: {error}") from None
    return "cce"


def flash_attention_problem() -> str | None:
    """Return why the flash-attn package cannot be used here, or None when it can; the package is really loaded.

    A wheel of flash-attn fits one version of torch, of CUDA and of the C library each, and the loader's own message
    rarely says which of them is wrong.
    """
    try:
        importlib.import_module("flash_attn")
    except ModuleNotFoundError as error:
        if error.name == "flash_attn":
            return "is missing: pip install --no-build-isolation flash-attn (see requirements-gpu.txt)"
        return f"needs the module {error.name}, which is missing"
    except (ImportError, OSError, RuntimeError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "GLIBC" in text:
            return f"was built for a newer C library (GLIBC) than this system's: {text}"
        if "libcu" in text or "libnv" in text:
            return f"was built for another CUDA than torch's: {text}"
        if "undefined symbol" in text:
            return f"was built for another torch: {text}"
        return f"does not load: {text}"
    return None


def get_optimizer_name(name: str) -> str:
    """Return the Trainer's name of an optimizer that runs here.

    `adamw_bnb_8bit` becomes `adamw_torch_fused`, with a printed line, where bitsandbytes is not installed; every other
    name is returned as it is.
    """
    if name == "adamw_bnb_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        print("bitsandbytes is not installed: adamw_torch_fused instead of adamw_bnb_8bit (more optimizer memory)")
        return "adamw_torch_fused"
    return name
