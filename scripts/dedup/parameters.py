"""What a dedup run is asked to do: one frozen value, so that the answer is a function of (documents, parameters)."""

from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from pipeline_lib.stage import UserError

PARTS = 1_000_000
"""Thresholds become whole millionths once, here; every later comparison is between integers."""

MAX_PERMUTATIONS = 1024


WITHOUT_GUARD = {"max_removed_fraction": 1.0, "max_cluster": 2**62}
"""Parameters under which the wipe-out guard lets everything pass."""


@dataclass(frozen=True)
class DedupParameters:
    """Parameters of exact and fuzzy dedup. The number of permutations is `bands * rows`.

    `bands` and `rows` decide which pairs are *looked at* (see `candidate_probability`), the two thresholds decide which
    of them are duplicates. Raises UserError when a value is of another type or out of range.
    """

    shingle: str = "word"
    """Unit of a shingle: "word" (each code point in scripts without spaces) or "character"."""
    ngram: int = 5
    """Tokens per shingle; a document with fewer tokens is compared exactly only."""
    bands: int = 16
    """Bands of the signature; two documents are candidates when at least one whole band agrees."""
    rows: int = 7
    """Permutations per band."""
    jaccard: float = 0.8
    """A document is a duplicate when its shingle set and the survivor's have at least this Jaccard similarity."""
    containment: float = 0.8
    """...and when at least this fraction of its own shingles is in the survivor (implied when <= jaccard)."""
    candidates_per_band: int = 8
    """Survivors of one band bucket that a document is compared with, best first."""
    seed: int = 1
    """Seed of the permutations."""
    exact_sources: tuple[str, ...] = ()
    """Sources whose documents are compared exactly only, such as tables and generated code."""
    exact_kinds: tuple[str, ...] = ()
    """Kinds of documents that are compared exactly only, told by the shape of their lines (text_kind.py): "code",
    "table"."""
    source_rank: tuple[str, ...] = ()
    """Sources to keep first, best first; a source that is not listed comes after all that are."""
    max_removed_fraction: float = 0.9
    """The run stops when a source would lose more than this fraction of its documents."""
    guard_minimum: int = 100
    """Sources with fewer documents than this are not guarded (three copies of one page are no wipe-out)."""
    max_cluster: int = 10_000
    """The run stops when more documents than this would be removed as fuzzy duplicates of a single one."""
    device: str = "auto"
    """Where signatures are computed: "cpu", "gpu", or "auto" (the GPU when there is one); the bits are the same."""

    def __post_init__(self) -> None:
        for field in fields(self):
            _of_type(field.name, getattr(self, field.name), field.type)
        _one_of("shingle", self.shingle, ("word", "character"))
        _one_of("device", self.device, ("auto", "cpu", "gpu"))
        for kind in self.exact_kinds:
            _one_of("exact_kinds", kind, ("code", "table"))
        for name, low, high in (
            ("ngram", 1, 64),
            ("bands", 1, MAX_PERMUTATIONS),
            ("rows", 1, MAX_PERMUTATIONS),
            ("candidates_per_band", 1, 1024),
            ("guard_minimum", 1, None),
            ("max_cluster", 1, None),
            ("seed", 0, 2**63 - 1),
        ):
            _in_range(name, getattr(self, name), low, high)
        for name in ("jaccard", "containment", "max_removed_fraction"):
            _in_range(name, getattr(self, name), 0.0, 1.0)
        if self.permutations > MAX_PERMUTATIONS:
            raise UserError(f"dedup: bands x rows is {self.permutations}, more than {MAX_PERMUTATIONS}; lower one")

    @property
    def permutations(self) -> int:
        """Number of minima per signature."""
        return self.bands * self.rows

    @property
    def jaccard_parts(self) -> int:
        """The Jaccard threshold in millionths."""
        return round(self.jaccard * PARTS)

    @property
    def containment_parts(self) -> int:
        """The containment threshold in millionths."""
        return round(self.containment * PARTS)

    @property
    def bytes_per_candidate(self) -> int:
        """Memory of one candidate while its group is resolved: buckets, their survivors, order, id, set limits."""
        return self.bands * 4 + self.bands * 2 * self.candidates_per_band + 160

    def shape(self) -> dict[str, Any]:
        """Return the parameters that decide what a sketch holds; sketches of another shape cannot be compared."""
        names = ("shingle", "ngram", "bands", "rows", "seed")
        exact = {"exact_sources": sorted(set(self.exact_sources)), "exact_kinds": sorted(set(self.exact_kinds))}
        return {name: getattr(self, name) for name in names} | exact

    def decisive(self) -> dict[str, Any]:
        """Return the parameters that decide which documents are found to be duplicates of which."""
        names = ("jaccard_parts", "containment_parts", "candidates_per_band")
        return self.shape() | {name: getattr(self, name) for name in names} | {"source_rank": list(self.source_rank)}

    def candidate_probability(self, jaccard: float) -> float:
        """Return the chance that a pair of this similarity shares a band: 1 - (1 - J^rows)^bands.

        The recall of the candidate search, before verification: 16 x 7 finds 97.7 % of the pairs at exactly 0.8 and
        99.997 % at 0.9 with 112 permutations, 14 x 8 (which is usual where nothing is verified, because it shows fewer
        pairs below the threshold) 92 % and 99.96 % with as many, 20 x 13 68 % and 99.7 % with 260.
        """
        return 1.0 - (1.0 - jaccard**self.rows) ** self.bands


_WHAT = {int: (Integral, "a whole number"), float: (Real, "a number"), str: (str, "a text")}


def _of_type(name: str, value: Any, kind: Any) -> None:
    if kind in _WHAT:
        types, what = _WHAT[kind]
        fits = isinstance(value, types) and not isinstance(value, bool)
    else:  # tuple[str, ...]; JSON and YAML have lists
        what = "a list of texts"
        fits = isinstance(value, (tuple, list)) and all(isinstance(each, str) for each in value)
    if not fits:
        raise UserError(f"dedup: {name} is {value!r}; it must be {what}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"dedup: {name} is {value!r}; choose one of {', '.join(allowed)}")


def _in_range(name: str, value: float, low: float, high: float | None) -> None:
    if not value >= low or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"between {low} and {high}"
        raise UserError(f"dedup: {name} is {value!r}; it must be {limit}")
