"""Attention that stays inside documents when several of them share a packed sequence.

Each token carries the number of its document within the sequence. From the numbers follows a mask that is causal
within a document and closed across documents. Positions restart at 0 with each document, so a document is computed as
if it stood alone: the perturbation test in tests/pretraining changes a token of one document and finds every other
document's output unchanged to the last bit.

Cost: a dense boolean mask of length x length per sequence; attention work grows with the sequence, not the document.
"""

from __future__ import annotations

import torch
from torch import Tensor


def document_mask(documents: Tensor) -> Tensor:
    """Return the mask [batch, 1, length, length], True where a query (row) may look at a key (column).

    documents: [batch, length], equal for tokens of the same document of a sequence. Padding counts as a document.
    """
    same = documents[:, :, None] == documents[:, None, :]
    length = documents.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril_()
    return (same & causal)[:, None]
