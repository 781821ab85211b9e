"""Text to token ids with gigatoken, from Arrow buffers to flat arrays, without a Python object per document or token.

Text is data: a document that contains the characters "<|endoftext|>" (the documentation of a tokenizer does) must not
end there. The encoder therefore works without the special tokens, and they get into the cache only where this package
puts them. Hugging Face does the same under `encode_special_tokens = True`, and both must give the same ids on a sample
of every run: see `check_against_hugging_face`.
"""

import json
import re
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline_lib.stage import StageFailure, UserError
from pipeline_lib.stage.memory import own_resident_bytes

from .pretoken_counts import DocumentBatch
from .tokenizer_folder import special_ids, tokenizer_content

if TYPE_CHECKING:
    from tokenizers import Tokenizer

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
FORGET_AFTER_BYTES = 512 << 20
"""Text after which gigatoken is loaded anew: each of its threads remembers every word that it ever met, 70 MB of memory
in 160 MB of text. Beginning anew costs half a second of processor time."""
FORGET_AFTER_GROWTH = 200 << 20
"""Memory of the process that has come since, after which it is loaded anew earlier: where words have no blanks between
them, 100 MB of text leave 700 MB of clauses to remember."""
LEAST_BETWEEN = 32 << 20
"""Text between two loads all the same, whoever else took the memory."""


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

    vocab_size: number of ids; special: ids that are not text, not there when it only counts; dtype: the smaller of
    uint16 and uint32 that holds an id; fallback: why Hugging Face tokenizers encodes instead of gigatoken, or None.
    """

    def __init__(self, folder: Path, only_counts: bool = False):
        """Load a tokenizer folder.

        Raises UserError when no implementation reads it, and when a text can spell one of its special tokens.

        only_counts: its tokens are counted and never packed, so it needs no token that ends a document.
        """
        self.folder = folder
        content = tokenizer_content(folder)
        if not only_counts:
            self.special = special_ids(folder)
        self.fallback: str | None = None
        try:
            self._engine: _Gigatoken | _HuggingFace = _Gigatoken(content)
        except (ValueError, RuntimeError) as error:
            self.fallback = str(error).splitlines()[0]
            self._engine = _HuggingFace(folder, content)
        if not only_counts:
            self._refuse_special_tokens_that_text_can_spell(content)
        self._vocabulary = self._engine.vocabulary
        self.vocab_size = 1 + max(self._vocabulary)
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    def _refuse_special_tokens_that_text_can_spell(self, content: dict[str, Any]) -> None:
        """The models called Unigram find every piece of theirs in a text, those that are special too."""
        model = content["model"]
        unknown = model["vocab"][model["unk_id"]][0] if model.get("unk_id") is not None else model.get("unk_token")
        tokens = {token["content"]: token["id"] for token in content.get("added_tokens") or [] if token["special"]}
        spelled, offsets = self.encode(pa.array(list(tokens), pa.large_string()))
        for place, (token, identity) in enumerate(tokens.items()):
            if token != unknown and identity in spelled[offsets[place] : offsets[place + 1]]:
                raise UserError(
                    f"{self.folder / 'tokenizer.json'}: a document that spells {token!r} would hold the special token"
                    f" itself, because its model ({model.get('type')}) has it among its pieces; take a tokenizer whose"
                    " text cannot become a special token"
                )

    def encode(self, array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Encode documents without special tokens; return (tokens uint32 [n], boundaries int64 [documents + 1])."""
        if len(array) == 0:
            return np.zeros(0, np.uint32), np.zeros(1, np.int64)
        return self._engine.encode(array)

    def decode(self, tokens: Sequence[int] | np.ndarray) -> bytes:
        """Return the bytes that the tokens spell."""
        return self._engine.decode(np.asarray(tokens, np.uint32))

    def token_bytes(self) -> np.ndarray:
        """Return how many bytes of text each id stands for, int32 [vocab_size]; 0 for special tokens and unused ids."""
        sizes = np.zeros(self.vocab_size, np.int32)
        for identity, spelled in self._vocabulary.items():
            sizes[identity] = spelled
        sizes[list(self.special.all)] = 0
        return sizes

    def check_against_hugging_face(self, texts: Sequence[str]) -> None:
        """Raise StageFailure unless Hugging Face tokenizers, from the same files, gives the same ids for every text."""
        tokens, offsets = self.encode(pa.array(texts, pa.large_string()))
        for place, expected in enumerate(_reference(self.folder).encode_batch(list(texts), add_special_tokens=False)):
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


class _Gigatoken:
    """gigatoken: the fast engine, for byte-level and SentencePiece BPE with a split rule it knows."""

    def __init__(self, content: dict[str, Any]):
        import gigatoken

        spelled = gigatoken.Tokenizer.from_json(json.dumps(content)).vocab
        self.vocabulary = {identity: len(text) for identity, text in spelled.items()}
        plain = {**content, "added_tokens": [each for each in content.get("added_tokens") or [] if not each["special"]]}
        self._load = partial(gigatoken.Tokenizer.from_json, json.dumps(plain))
        self._tokenizer = self._load()
        self._encoded_bytes, self._resident_bytes = 0, own_resident_bytes()
        self._lock = threading.Lock()

    def _current(self, size: int) -> Any:
        """Return the tokenizer that is to encode the next `size` bytes: a new one when this one has met much text."""
        with self._lock:
            if self._encoded_bytes > FORGET_AFTER_BYTES or self._has_grown():
                self._tokenizer = self._load()
                self._encoded_bytes, self._resident_bytes = 0, own_resident_bytes()
            self._encoded_bytes += size
            return self._tokenizer

    def _has_grown(self) -> bool:
        if self._encoded_bytes <= LEAST_BETWEEN:
            return False
        return own_resident_bytes() - self._resident_bytes > FORGET_AFTER_GROWTH

    def encode(self, array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        import awkward

        data, boundaries = text_buffers(array)
        characters = awkward.contents.NumpyArray(data, parameters={"__array__": "char"})
        strings = awkward.contents.ListOffsetArray(
            awkward.index.Index64(boundaries), characters, parameters={"__array__": "string"}
        )
        tokenizer = self._current(int(boundaries[-1] - boundaries[0]))
        encoded = tokenizer.encode_batch(awkward.Array(strings)).layout
        offsets = np.asarray(encoded.offsets.data, np.int64)
        return np.asarray(encoded.content.data)[: offsets[-1]], offsets

    def decode(self, tokens: np.ndarray) -> bytes:
        return self._tokenizer.decode(tokens)


class _HuggingFace:
    """Hugging Face tokenizers: every model there is, ten to a hundred times slower, with lists of ids on the way."""

    _DOCUMENTS = 256
    _BYTE = re.compile(r"<0x[0-9A-F]{2}>")

    def __init__(self, folder: Path, content: dict[str, Any]):
        self._tokenizer = _reference(folder)
        byte_level = "ByteLevel" in json.dumps(content.get("decoder"))
        self.vocabulary = {
            identity: len(token) if byte_level else self._bytes(token)
            for token, identity in self._tokenizer.get_vocab().items()
        }

    def _bytes(self, token: str) -> int:
        if self._BYTE.fullmatch(token):
            return 1
        return len(token.removeprefix("##").replace("\u2581", " ").encode())

    def encode(self, array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        parts, lengths = [], []
        for start in range(0, len(array), self._DOCUMENTS):
            texts = array.slice(start, self._DOCUMENTS).to_pylist()
            for encoded in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False):
                parts.append(np.array(encoded.ids, np.uint32))
                lengths.append(len(parts[-1]))
        return np.concatenate(parts), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    def decode(self, tokens: np.ndarray) -> bytes:
        return self._tokenizer.decode(tokens.tolist(), skip_special_tokens=False).encode()


def _reference(folder: Path) -> "Tokenizer":
    """Load Hugging Face's implementation, set to take special tokens in a text for text."""
    from tokenizers import Tokenizer

    try:
        reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises nothing more specific
        raise UserError(f"{folder / 'tokenizer.json'} cannot be loaded: {error}") from None
    reference.encode_special_tokens = True
    reference.no_truncation()
    reference.no_padding()
    return reference
