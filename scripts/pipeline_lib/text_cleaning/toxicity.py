"""How toxic a text is: by Detoxify's classifier where its weights are on this machine, else by counting listed words.

The two are not the same thing, and the card names the one that judged. `detoxify` is the BERT of Detoxify's "original"
(Hanu and Unitary 2020, trained on the Jigsaw comments; unitary/toxic-bert on the hub): six labels, of which the highest
probability counts, over up to four windows of 512 tokens spread over the document. `words` is the share of words that
are on a list of profanity: it knows neither threats in polite words nor quotation, and judges crudeness, not toxicity.
Cost: words cost a pass over the text; detoxify runs a BERT, which belongs on a GPU or on a small corpus.
Trap: the weights are read from safetensors only; Detoxify's own package loads pickles and is not used.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline_lib.stage import UserError

from .contamination import ngram_hashes
from .toxicity_backend import read_words, toxicity_backend, weights_folder, word_list

if TYPE_CHECKING:
    import pyarrow

    from pipeline_lib.config.clean import ToxicitySettings

_WINDOW_TOKENS = 512
_MOST_WINDOWS = 4
_BATCH = 16


class ToxicityScorer(Protocol):
    """What both backends offer; `column` is where the scores stand."""

    column: str

    def score(self, texts: "pyarrow.Array") -> np.ndarray:
        """Return float64[documents], 0 for a text without words."""
        ...


def load_scorer(settings: "ToxicitySettings") -> ToxicityScorer | None:
    """Return the scorer that the settings lead to, None for off. Raises UserError when it cannot be loaded."""
    backend = toxicity_backend(settings)
    if backend == "off":
        return None
    if backend == "words":
        return WordShare(read_words(word_list(settings)))
    return Detoxify(weights_folder(settings.model))


class WordShare:
    """The share of a text's words that are on a list, case and punctuation aside."""

    column = "profane_words"

    def __init__(self, words: Sequence[str]):
        """`words`: one word each; a line of several words would never be met and raises UserError."""
        import pyarrow as pa

        hashes, starts = ngram_hashes(pa.array(list(words), pa.large_string()), 1)
        if (strange := np.diff(starts) != 1).any():
            raise UserError(f"clean.toxicity.words: {words[int(np.argmax(strange))]!r} is not one word")
        self._hashes = np.unique(hashes)

    def score(self, texts: "pyarrow.Array") -> np.ndarray:
        """Return listed words per word, float64[documents]."""
        hashes, starts = ngram_hashes(texts, 1)
        listed = np.append(0, np.cumsum(np.isin(hashes, self._hashes)))
        return np.diff(listed[starts]) / np.maximum(np.diff(starts), 1)


class Detoxify:
    """A multi-label sequence classifier of transformers, by its highest probability over windows of the text."""

    column = "toxicity"

    def __init__(self, folder: Path):
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._torch = torch
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model: Any = AutoModelForSequenceClassification.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise UserError(f"clean.toxicity.model: {folder} is no classifier ({str(error).splitlines()[0]})") from None
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = self._model.to(device).eval()

    def score(self, texts: "pyarrow.Array") -> np.ndarray:
        """Return the highest probability of any label in any window, float64[documents]."""
        scores = np.zeros(len(texts))
        windows = [(number, window) for number, text in enumerate(texts.to_pylist()) for window in self._windows(text)]
        windows.sort(key=lambda window: len(window[1]))
        for start in range(0, len(windows), _BATCH):
            part = windows[start : start + _BATCH]
            encoded = self._tokenizer.pad({"input_ids": [ids for _, ids in part]}, return_tensors="pt")
            with self._torch.inference_mode():
                logits = self._model(**encoded.to(self._model.device)).logits.float()
            for (number, _), score in zip(part, logits.sigmoid().amax(-1).tolist(), strict=True):
                scores[number] = max(scores[number], score)
        return scores

    def _windows(self, text: str) -> list[list[int]]:
        size = min(_WINDOW_TOKENS, self._model.config.max_position_embeddings)
        cut = self._tokenizer(text, truncation=True, max_length=size, return_overflowing_tokens=True)["input_ids"]
        if len(cut) <= _MOST_WINDOWS:
            return cut if text.strip() else []
        return [cut[round(i * (len(cut) - 1) / (_MOST_WINDOWS - 1))] for i in range(_MOST_WINDOWS)]
