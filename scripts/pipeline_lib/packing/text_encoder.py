"""Text to token ids with gigatoken, from Arrow buffers to flat arrays, without a Python object per document or token.

Text is data: a document that contains the characters "<|endoftext|>" (the documentation of a tokenizer does) must not
end there. The encoder therefore works without the special tokens, and they get into the cache only where this package
puts them. Hugging Face does the same under `encode_special_tokens = True`, and both must give the same ids on a sample
of every run: see `check_against_hugging_face`.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline_lib.compiled import kernel
from pipeline_lib.stage import StageFailure, UserError

from .pretoken_counts import DocumentBatch
from .tokenizer_folder import special_ids

PROBES = (
    "",
    " ",
    "a",
    "\n\n \t\r\n  x",
    "It's WE'LL o'clock 'tis I'm",
    "1 12 123 1234 12345678 3.14159 x1y22z333",
    "snake_case camelCase (foo) .bar --flag $x @y #z \"quoted\" 'single'",
    "<|endoftext|><|pad|> <|im_start|>user\nhi<|im_end|>",
    "naïve café Ünïcödé ß ſ ı İ ǅ",
    "日本語のテキスト、한국어 ภาษาไทย हिन्दी العربية",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \u200b\u00a0\u3000\u2028 \ufeff \x00\x01\x7f\x85",
    "=" * 70 + "\n" + " " * 40 + "\t" * 9,
    "½ ² Ⅷ ٣٤٥ 零一 ①",
)
"""Short texts that exercise every branch of a split rule."""


def text_buffers(array: pa.Array) -> DocumentBatch:
    """View strings as (bytes uint8 [n], boundaries int64 [documents + 1]) without a copy. Raises ValueError on null."""
    wide = pa.types.is_large_string(array.type)
    if array.null_count or not (wide or pa.types.is_string(array.type)):
        raise ValueError(f"expected strings without null, got {array.type} with {array.null_count} nulls")
    _, offsets, data = array.buffers()
    if len(array) == 0 or data is None:
        return np.zeros(0, np.uint8), np.zeros(len(array) + 1, np.int64)
    boundaries = np.frombuffer(offsets, np.int64 if wide else np.int32)[array.offset : array.offset + len(array) + 1]
    return np.frombuffer(data, np.uint8), boundaries.astype(np.int64)


class TextEncoder:
    """A tokenizer folder at work.

    vocab_size: number of ids; special: ids that are not text; dtype: the smaller of uint16 and uint32 that holds an id.
    """

    def __init__(self, folder: Path):
        """Load a tokenizer folder. Raises UserError when gigatoken cannot reproduce that kind of tokenizer."""
        import gigatoken

        self.folder = folder
        self.special = special_ids(folder)
        content = json.loads((folder / "tokenizer.json").read_bytes())
        try:
            self._vocabulary = gigatoken.Tokenizer.from_json(json.dumps(content)).vocab
            content["added_tokens"] = [token for token in content.get("added_tokens") or [] if not token["special"]]
            self._gigatoken = gigatoken.Tokenizer.from_json(json.dumps(content))
        except ValueError as error:
            raise UserError(f"{folder / 'tokenizer.json'}: gigatoken cannot encode with it ({error})") from None
        self.vocab_size = 1 + max(self._vocabulary)
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    def encode(self, array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Encode documents without special tokens; return (tokens uint32 [n], boundaries int64 [documents + 1])."""
        import awkward

        data, boundaries = text_buffers(array)
        characters = awkward.contents.NumpyArray(data, parameters={"__array__": "char"})
        strings = awkward.contents.ListOffsetArray(
            awkward.index.Index64(boundaries), characters, parameters={"__array__": "string"}
        )
        encoded = self._gigatoken.encode_batch(awkward.Array(strings)).layout
        offsets = np.asarray(encoded.offsets.data, np.int64)
        return np.asarray(encoded.content.data)[: offsets[-1]], offsets

    def encode_documents(self, array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Encode documents, each ended by the separator; return (tokens `dtype` [n], boundaries [documents + 1])."""
        tokens, offsets = self.encode(array)
        ended = np.empty(len(tokens) + len(array), self.dtype)
        _append_separator(tokens, offsets, self.special.separator, ended)
        return ended, offsets + np.arange(len(array) + 1)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> bytes:
        """Return the bytes that the tokens spell."""
        return self._gigatoken.decode(np.asarray(tokens, np.uint32))

    def token_bytes(self) -> np.ndarray:
        """Return how many bytes of text each id stands for, int32 [vocab_size]; 0 for special tokens and unused ids."""
        sizes = np.zeros(self.vocab_size, np.int32)
        for identity, spelled in self._vocabulary.items():
            sizes[identity] = len(spelled)
        sizes[list(self.special.all)] = 0
        return sizes

    def check_against_hugging_face(self, texts: Sequence[str]) -> None:
        """Raise StageFailure unless Hugging Face tokenizers, from the same files, gives the same ids for every text."""
        from tokenizers import Tokenizer

        reference = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        reference.encode_special_tokens = True
        reference.no_truncation()
        reference.no_padding()
        tokens, offsets = self.encode(pa.array(texts, pa.large_string()))
        for place, expected in enumerate(reference.encode_batch(list(texts), add_special_tokens=False)):
            if tokens[offsets[place] : offsets[place + 1]].tolist() != expected.ids:
                raise StageFailure(
                    f"gigatoken and Hugging Face tokenizers disagree under {self.folder / 'tokenizer.json'} about the"
                    f" ids of the text that begins {texts[place][:60]!r}; nothing was encoded"
                )

    def is_lossless(self, texts: Sequence[str]) -> bool:
        """Say whether every text comes back exactly and its bytes are the sum of its tokens' bytes."""
        tokens, offsets = self.encode(pa.array(texts, pa.large_string()))
        sizes = self.token_bytes()
        for place, text in enumerate(texts):
            own = tokens[offsets[place] : offsets[place + 1]]
            if self.decode(own) != text.encode() or int(sizes[own].sum()) != len(text.encode()):
                return False
        return True


@kernel
def _append_separator(tokens, offsets, separator, ended):
    """Copy each document's tokens into `ended` (one place longer per document) and put the separator after them."""
    for document in range(len(offsets) - 1):
        start, stop = offsets[document], offsets[document + 1]
        for i in range(start, stop):
            ended[i + document] = tokens[i]
        ended[stop + document] = separator
