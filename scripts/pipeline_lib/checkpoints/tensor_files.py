"""Write tensors as a safetensors file, digest included, without holding the interpreter.

The format (huggingface.co/docs/safetensors): length of the header (uint64, little-endian), the header (JSON: name ->
dtype, shape, data_offsets), then the bytes of all tensors without gaps. Reading is left to the safetensors library.

Why our own writer: the library's holds the interpreter lock while it writes, which would stop the training loop for as
long as the disk takes; here `write` and the digest release it. The digest is made of the bytes as they are written, so
nothing is read back, and a full disk is the OSError that it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

if TYPE_CHECKING:
    import numpy
    from torch import Tensor

_BLOCK_BYTES = 1 << 22
_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8",
    "bool": "BOOL",
}  # fmt: skip


def write_tensor_file(path: Path, named: dict[str, Tensor]) -> dict[str, Any]:
    """Write `named` to `path` and return {"bytes", "digest"} of the file, as `file_digest` would give it.

    Tensors on a device are fetched one at a time. Raises ValueError for a number format that safetensors does not
    have, OSError when the disk is full.
    """
    order = sorted(named, key=lambda name: (-named[name].element_size(), name))  # keeps every tensor aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in order:
        tensor = named[name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in _NAMES:
            raise ValueError(f"{name} has number format {dtype}, which a checkpoint cannot hold")
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, position + size],
        }
        position += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    try:
        digest = _write_blocks(path, encoded, [named[name] for name in order])
    except OSError as error:  # `write` does not say which file
        raise OSError(error.errno, error.strerror, str(path)) from error
    return {"bytes": 8 + len(encoded) + position, "digest": digest}


def _write_blocks(path: Path, header: bytes, tensors: list[Tensor]) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "wb") as stream:
        for block in (len(header).to_bytes(8, "little"), header):
            stream.write(block)
            digest.update(block)
        for tensor in tensors:
            content = bytes_of(tensor)
            for start in range(0, len(content), _BLOCK_BYTES):
                block = memoryview(content[start : start + _BLOCK_BYTES])
                stream.write(block)
                digest.update(block)
    return f"xxh3:{digest.hexdigest()}"


def bytes_of(tensor: Tensor) -> numpy.ndarray:
    """Return the content of a tensor, uint8 [bytes]; a view of it when it is contiguous and on the CPU."""
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
