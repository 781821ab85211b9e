"""Attention that stays inside documents when several of them share a packed sequence, as fast as this machine can.

Each token carries the number of its document within the sequence; positions restart at 0 with each document. So a
document is computed as if it stood alone: the perturbation test in tests/pretraining changes a token of one document
and finds every other document's output unchanged to the last bit.

    documents   CPU: torch's blocked kernel once per document (cpu_attention.py); work grows with the documents
    flash       GPU, 16 bits: FlashAttention 2 with one "sequence" per document, from the flash-attn package, or the
                copy that torch carries when the package is missing or does not load
    flex        GPU, any format: FlexAttention, which skips blocks of 128 x 128 that no document covers
    dense       anywhere: scaled dot product with a boolean mask; work grows with the square of the sequence

The transformers models call an attention function by name; the functions here are registered under their own names and
get the arrangement of documents ("layout") as a keyword that every layer passes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline_lib.kernel_optimizations import flash_attention_problem
from pipeline_lib.stage import StageFailure

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Names in transformers' registry are global, and one with "flash" in it makes it look for a package of that name.
_REGISTERED = {
    "documents": "llm_pipeline_documents",
    "flex": "llm_pipeline_flex",
    "flash": "llm_pipeline_varlen",
    "flash_torch": "llm_pipeline_varlen_torch",
}


@dataclass(frozen=True)
class AttentionChoice:
    """name: one of documents, flash, flash_torch, flex, dense; reason: a sentence for the card."""

    name: str
    reason: str


def choose_attention(wanted: str, device: torch.device, dtype: torch.dtype) -> AttentionChoice:
    """Return the implementation for `wanted` ("auto", "documents", "flash", "flex", "dense") and say why.

    Raises StageFailure when the wanted one cannot run here: nothing else is put in its place silently.
    """
    on_gpu = device.type == "cuda"
    if wanted == "dense":
        return AttentionChoice("dense", "attention through a dense mask, as asked: work grows with the sequence")
    if not on_gpu:
        if wanted in ("flash", "flex"):
            raise StageFailure(f"pretrain.attention {wanted} needs a GPU; use auto, documents or dense on a CPU")
        return AttentionChoice("documents", "attention document by document: no GPU, so no FlashAttention")
    if wanted == "documents":
        raise StageFailure("pretrain.attention documents runs on a CPU; use auto, flash, flex or dense on a GPU")
    if wanted != "flex":
        choice, problem = _choose_flash(dtype)
        if choice is not None:
            return choice
        if wanted == "flash":
            raise StageFailure(f"pretrain.attention flash cannot run: {problem}")
        return AttentionChoice("flex", f"FlexAttention, because FlashAttention cannot run: {problem}")
    return AttentionChoice("flex", "FlexAttention, as asked")


def _choose_flash(dtype: torch.dtype) -> tuple[AttentionChoice | None, str]:
    if dtype not in (torch.bfloat16, torch.float16):
        return None, f"it multiplies in 16 bits, this run in {str(dtype).removeprefix('torch.')}"
    problem = flash_attention_problem()
    if problem is None:
        return AttentionChoice("flash", "FlashAttention from the flash-attn package, one sequence per document"), ""
    try:
        probe = torch.zeros(16, 1, 64, device="cuda", dtype=dtype)
        _torch_flash(probe, probe, probe, torch.tensor([0, 16], device="cuda", dtype=torch.int32), 16, 1.0)
    except RuntimeError as error:
        return None, f"the package {problem}; torch's own copy says: {str(error).splitlines()[0]}"
    return AttentionChoice("flash_torch", f"FlashAttention from torch's own copy: the flash-attn package {problem}"), ""


def use_attention(model: PreTrainedModel, name: str) -> None:
    """Make every block of `model` attend through the implementation `name`."""
    from transformers import AttentionInterface

    if name == "dense":
        model.set_attn_implementation("sdpa")
        return
    AttentionInterface.register(_REGISTERED[name], _FUNCTIONS[name])
    model.set_attn_implementation(_REGISTERED[name])


def attention_arguments(name: str, documents: Tensor) -> dict[str, Any]:
    """Return the keywords with which the model's forward pass must be called; documents: [batch, length]."""
    if name == "dense":
        return {"attention_mask": document_mask(documents)}
    if name == "documents":
        return {"layout": documents}
    if name == "flex":
        return {"layout": _block_mask(documents)}
    return {"layout": sequence_starts(documents)}


def document_mask(documents: Tensor) -> Tensor:
    """Return the mask [batch, 1, length, length], True where a query (row) may look at a key (column).

    documents: [batch, length], equal for tokens of the same document of a sequence. Padding counts as a document.
    """
    same = documents[:, :, None] == documents[:, None, :]
    length = documents.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril_()
    return (same & causal)[:, None]


def sequence_starts(documents: Tensor) -> Tensor:
    """Return where each document begins when all rows are laid end to end, and the total: int32 [places + 1].

    Padding counts as a document. The tensor is filled up with the total to a power of two of places, that is with empty
    documents, so that compiled code meets few different shapes.
    """
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    starts = begins.flatten().nonzero()[:, 0].to(torch.int32)
    places = 1 << (len(starts) - 1).bit_length()
    return torch.nn.functional.pad(starts, (0, places + 1 - len(starts)), value=documents.numel())


def _block_mask(documents: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def inside(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (documents[batch, query] == documents[batch, key])

    batch, length = documents.shape
    return create_block_mask(inside, batch, None, length, length, device=documents.device)


# -- what the models call; tensors [batch, heads, length, features] in, [batch, length, heads, features] out. Under
#    autocast the rotary positions leave queries and keys in float32 while values come in 16 bits.


def _by_document(module, query, key, value, attention_mask, scaling, layout, **_) -> tuple[Tensor, None]:
    from .cpu_attention import document_attention

    number_format, groups = value.dtype, query.shape[1] // key.shape[1]
    query, key, value = query.float(), key.float(), value.float()
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    output, _ = document_attention(query, key, value, layout, scaling, number_format)
    return output.transpose(1, 2).to(number_format), None


def _flexible(module, query, key, value, attention_mask, scaling, layout, **_) -> tuple[Tensor, None]:
    query, key = query.to(value.dtype), key.to(value.dtype)
    output = _flex_kernel(query.device.type)(
        query, key, value, block_mask=layout, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return output.transpose(1, 2), None


@cache
def _flex_kernel(device_type: str) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    # Uncompiled, FlexAttention holds all scores; its CPU kernel has no backward pass, so there it serves as an oracle.
    return torch.compile(flex_attention) if device_type == "cuda" else flex_attention


def _end_to_end(kernel: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, None]]:
    """Return an attention function that lays all rows end to end for a variable-length kernel."""

    def attend(module, query, key, value, attention_mask, scaling, layout, **_) -> tuple[Tensor, None]:
        batch, heads, length, features = query.shape
        rows = (tensor.transpose(1, 2).flatten(0, 1).to(value.dtype) for tensor in (query, key, value))
        return kernel(*rows, layout, length, scaling).view(batch, length, heads, features), None

    return attend


def _package_flash(query, key, value, starts, longest, scale) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(
        query, key, value, starts, starts, longest, longest, softmax_scale=scale, causal=True, deterministic=True
    )


def _torch_flash(query, key, value, starts, longest, scale) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    grouped = query.shape[1] != key.shape[1]
    return varlen_attn(
        query, key, value, starts, starts, longest, longest, scale=scale, window_size=(-1, 0), enable_gqa=grouped
    )


_FUNCTIONS = {
    "documents": _by_document,
    "flex": _flexible,
    "flash": _end_to_end(_package_flash),
    "flash_torch": _end_to_end(_torch_flash),
}
