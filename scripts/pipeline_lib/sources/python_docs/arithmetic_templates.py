"""The templates of the arithmetic problems: a question, the ranges of its operands, and the steps of its solution.

`derived` numbers are computed from operands before the question is written: so a division comes out even and a
difference stays positive. In a step's sentence `{work}` becomes "3 * 4 = <<3*4=12>>12".
"""

from __future__ import annotations

from dataclasses import dataclass, field

PEOPLE = (
    "Ada", "Ben", "Carla", "Dan", "Elif", "Femi", "Grace", "Hugo", "Ines", "Jonas", "Kira", "Liam", "Mei", "Noah",
    "Olga", "Paul", "Rosa", "Sam", "Tariq", "Uma", "Vera", "Wen", "Yusuf", "Zoe",
)  # fmt: skip

THINGS = (
    "apples", "books", "marbles", "stamps", "coins", "cards", "pencils", "shells", "stickers", "buttons", "tickets",
    "pears", "beads", "postcards", "candles", "bottles",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One line of a solution: result = left sign right. `left` and `right` name numbers or are digits."""

    sentence: str
    left: str
    sign: str
    right: str
    result: str = "r"


@dataclass(frozen=True)
class Template:
    """A family of problems that differ in numbers, persons and things."""

    name: str
    question: str
    operands: dict[str, tuple[int, int]]
    """Name of each drawn number and its lowest and highest value."""
    steps: tuple[Step, ...]
    derived: dict[str, tuple[str, str, str]] = field(default_factory=dict)


_ONE = (2, 30)
_FACTOR = (2, 12)
_SMALL = (2, 10)

TEMPLATES = (
    Template(
        "get more",
        "{person} has {a} {things} and gets {b} more. How many {things} does {person} have now?",
        {"a": _ONE, "b": _ONE},
        (Step("{person} has {work} {things}.", "a", "+", "b"),),
    ),
    Template(
        "together",
        "{person} has {a} {things}. {friend} has {b} {things}. How many {things} do they have together?",
        {"a": _ONE, "b": _ONE},
        (Step("Together they have {work} {things}.", "a", "+", "b"),),
    ),
    Template(
        "give away",
        "{person} has {a} {things} and gives {b} of them to {friend}. How many {things} are left?",
        {"left": _ONE, "b": _ONE},
        (Step("{person} has {work} {things} left.", "a", "-", "b"),),
        {"a": ("left", "+", "b")},
    ),
    Template(
        "how many more",
        "{person} has {a} {things} and {friend} has {b}. How many more {things} does {person} have than {friend}?",
        {"more": _ONE, "b": _ONE},
        (Step("{person} has {work} more {things}.", "a", "-", "b"),),
        {"a": ("more", "+", "b")},
    ),
    Template(
        "still needed",
        "{person} needs {a} {things} for a game and already has {b}. How many {things} are still missing?",
        {"missing": _ONE, "b": _ONE},
        (Step("There are {work} {things} missing.", "a", "-", "b"),),
        {"a": ("missing", "+", "b")},
    ),
    Template(
        "boxes",
        "There are {a} boxes with {b} {things} in each box. How many {things} are there in all?",
        {"a": _FACTOR, "b": _FACTOR},
        (Step("There are {work} {things} in all.", "a", "*", "b"),),
    ),
    Template(
        "price",
        "{person} buys {a} {things} for {b} dollars each. How many dollars does {person} pay?",
        {"a": _FACTOR, "b": _FACTOR},
        (Step("{person} pays {work} dollars.", "a", "*", "b"),),
    ),
    Template(
        "per day",
        "{person} reads {b} pages every day. How many pages does {person} read in {a} days?",
        {"a": _FACTOR, "b": _ONE},
        (Step("In {a} days {person} reads {work} pages.", "a", "*", "b"),),
    ),
    Template(
        "share",
        "{total} {things} are shared equally by {a} children. How many {things} does each child get?",
        {"a": _FACTOR, "each": _FACTOR},
        (Step("Each child gets {work} {things}.", "total", "/", "a"),),
        {"total": ("a", "*", "each")},
    ),
    Template(
        "bags",
        "{person} puts {total} {things} into bags of {a}. How many bags does {person} fill?",
        {"a": _FACTOR, "bags": _FACTOR},
        (Step("{person} fills {work} bags.", "total", "/", "a"),),
        {"total": ("a", "*", "bags")},
    ),
    Template(
        "twice",
        "{person} has {a} {things}. {friend} has twice as many. How many {things} does {friend} have?",
        {"a": (2, 60)},
        (Step("{friend} has {work} {things}.", "2", "*", "a"),),
    ),
    Template(
        "half",
        "{person} had {total} {things} and lost half of them. How many {things} does {person} still have?",
        {"a": (2, 60)},
        (Step("{person} still has {work} {things}.", "total", "/", "2"),),
        {"total": ("a", "+", "a")},
    ),
    Template(
        "get and give",
        "{person} has {a} {things}, gets {b} more and then gives {c} to {friend}. "
        "How many {things} does {person} have in the end?",
        {"left": _SMALL, "b": _SMALL, "c": _SMALL},
        (
            Step("With the new ones {person} has {work} {things}.", "a", "+", "b", "s"),
            Step("In the end {person} has {work} {things}.", "s", "-", "c"),
        ),
        {"a": ("left", "+", "c")},
    ),
    Template(
        "three friends",
        "{person} has {a} {things}, {friend} has {b}, and their teacher has {c}. How many {things} are there in all?",
        {"a": _SMALL, "b": _SMALL, "c": _SMALL},
        (
            Step("{person} and {friend} have {work} {things}.", "a", "+", "b", "s"),
            Step("In all there are {work} {things}.", "s", "+", "c"),
        ),
    ),
    Template(
        "boxes and loose",
        "There are {a} boxes with {b} {things} each, and {c} loose {things}. How many {things} are there in all?",
        {"a": _SMALL, "b": _SMALL, "c": _SMALL},
        (
            Step("The boxes hold {work} {things}.", "a", "*", "b", "s"),
            Step("In all there are {work} {things}.", "s", "+", "c"),
        ),
    ),
    Template(
        "boxes and broken",
        "{person} buys {a} boxes with {b} {things} each. {c} of the {things} are broken. How many are not broken?",
        {"a": (3, 10), "b": (4, 10), "c": _SMALL},
        (
            Step("{person} buys {work} {things}.", "a", "*", "b", "s"),
            Step("Of these {work} are not broken.", "s", "-", "c"),
        ),
    ),
    Template(
        "change",
        "{person} buys {a} {things} for {b} dollars each and pays with {c} dollars. "
        "How many dollars does {person} get back?",
        {"a": _SMALL, "b": _SMALL, "back": _SMALL},
        (
            Step("The {things} cost {work} dollars.", "a", "*", "b", "s"),
            Step("{person} gets {work} dollars back.", "c", "-", "s"),
        ),
        {"cost": ("a", "*", "b"), "c": ("cost", "+", "back")},
    ),
    Template(
        "two purchases",
        "A ticket costs {a} dollars and a drink costs {b} dollars. {person} buys {c} tickets and one drink. "
        "How many dollars is that?",
        {"a": _SMALL, "b": _SMALL, "c": _SMALL},
        (
            Step("The tickets cost {work} dollars.", "c", "*", "a", "s"),
            Step("With the drink that is {work} dollars.", "s", "+", "b"),
        ),
    ),
    Template(
        "both each",
        "{person} and {friend} each have {a} {things}. They put them together and use {b}. How many {things} are left?",
        {"a": (6, 30), "b": _SMALL},
        (
            Step("Together they have {work} {things}.", "2", "*", "a", "s"),
            Step("After that {work} {things} are left.", "s", "-", "b"),
        ),
    ),
    Template(
        "collect and share",
        "{person} has {a} {things} and {friend} has {b}. They share all of them equally with {c} children in total. "
        "How many {things} does each child get?",
        {"b": (2, 5), "c": _SMALL, "each": (3, 10)},
        (
            Step("Together there are {work} {things}.", "a", "+", "b", "s"),
            Step("Each child gets {work} {things}.", "s", "/", "c"),
        ),
        {"total": ("each", "*", "c"), "a": ("total", "-", "b")},
    ),
    Template(
        "save up",
        "{person} saves {a} dollars a week for {b} weeks and then spends {c} dollars. "
        "How many dollars does {person} have left?",
        {"a": (3, 10), "b": (4, 10), "c": _SMALL},
        (
            Step("{person} saves {work} dollars.", "a", "*", "b", "s"),
            Step("After that {person} has {work} dollars left.", "s", "-", "c"),
        ),
    ),
    Template(
        "more than twice",
        "{person} has {a} {things}. {friend} has {b} more than {person}. How many {things} do they have together?",
        {"a": (2, 20), "b": (2, 20)},
        (
            Step("{friend} has {work} {things}.", "a", "+", "b", "s"),
            Step("Together they have {work} {things}.", "a", "+", "s"),
        ),
    ),
    Template(
        "rows and rest",
        "{person} arranges {total} {things} in rows of {a} and then adds {b} more rows. How many rows are there?",
        {"a": _SMALL, "rows": _SMALL, "b": _SMALL},
        (
            Step("First there are {work} rows.", "total", "/", "a", "s"),
            Step("In the end there are {work} rows.", "s", "+", "b"),
        ),
        {"total": ("a", "*", "rows")},
    ),
    Template(
        "two days",
        "{person} walks {a} km on each of {b} days and {c} km on the day after. How many km does {person} walk in all?",
        {"a": _SMALL, "b": _SMALL, "c": _SMALL},
        (
            Step("On the first {b} days {person} walks {work} km.", "a", "*", "b", "s"),
            Step("In all {person} walks {work} km.", "s", "+", "c"),
        ),
    ),
)
