"""Arrow string arrays as the plain buffers that compiled code reads and writes: no Python object per document."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow


def text_buffers(texts: "pyarrow.Array") -> tuple[np.ndarray, np.ndarray]:
    """Return (bytes uint8[...], offsets int64[documents + 1]) of an Arrow string array, without copying the bytes.

    Raises ValueError when the array has nulls.
    """
    import pyarrow as pa

    if texts.null_count:
        raise ValueError("texts must not be null")
    texts = texts.cast(pa.large_binary() if _is_binary(texts.type) else pa.large_string())
    _, offsets, data = texts.buffers()
    starts = (
        np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
        if len(texts)
        else np.zeros(1, np.int64)
    )
    return np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8), starts


def _is_binary(kind: "pyarrow.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def text_array(data: np.ndarray, offsets: np.ndarray) -> "pyarrow.Array":
    """Return a large_string array over these buffers (uint8[...], int64[documents + 1]), without copying them."""
    import pyarrow as pa

    return pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))


def replace_texts(texts: "pyarrow.Array", replacements: dict[int, str]) -> "pyarrow.Array":
    """Return a large_string array with the texts at some places replaced; the others are copied as bytes."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not replacements:
        return texts
    mask = np.zeros(len(texts), np.bool_)
    mask[list(replacements)] = True
    values = pa.array([replacements[place] for place in sorted(replacements)], pa.large_string())
    return pc.replace_with_mask(texts, pa.array(mask), values)
