"""First sentences: what they are, and that they are the docstring's own words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib.sources.python_docs.extraction import Item
from pipeline_lib.sources.python_docs.summaries import describes, first_sentence, words


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the sum. It is exact.", "Return the sum."),
        ("Return the\n    sum of ``x`` and *y*\nas a float.\n\nMore.", "Return the sum of x and y as a float."),
        ("Merge maps, e.g. Two of them. Then stop.", "Merge maps, e.g. Two of them."),
        ("Follow D. Knuth closely. Really.", "Follow D. Knuth closely."),
        ("Round to 2.5 digits. Next.", "Round to 2.5 digits."),
        ("Call :func:`~a.b.c` and :class:`Thing`. Done.", "Call a.b.c and Thing."),
        ("One line without an end", "One line without an end."),
        ("A heading\nof two lines without an end", ""),
        ("Options:", ""),
        ("Is it so? Yes.", "Is it so?"),
        ("**Bold** claims use **kwargs too.", "Bold claims use kwargs too."),
        ("Close all ``File``s of a folder.", ""),
        ("", ""),
    ],
)
def test_first_sentence(docstring: str, sentence: str):
    assert first_sentence(docstring) == sentence


@given(
    st.lists(
        st.sampled_from(
            [
                "Word",
                "of",
                "``x``",
                "*a*",
                "**b**",
                ":meth:`~p.q`",
                "e.g.",
                "i.e",
                "A.",
                "end.",
                "?",
                "\n",
                "\n\n",
                "(it)",
                "`y`s",
                "3.5",
                ":r:",
                "~",
                "é",
            ]
        )
    ).map(" ".join)
    | st.text()
)
def test_the_sentence_is_one_line_and_its_words_are_the_first_words_of_the_docstring(docstring: str):
    sentence = first_sentence(docstring)
    found = words(sentence)
    assert "\n" not in sentence and sentence == " ".join(sentence.split())
    assert found == words(docstring)[: len(found)]
    assert not sentence or sentence[-1] in ".!?"


def item(name: str) -> Item:
    return Item(f"package.module.{name}", "function", "", "", (), "")


GOOD = "Return the number of open files."


def test_a_plain_description_of_a_public_name_is_accepted():
    assert describes(item("count_files"), "package.module", GOOD)
    assert describes(item("Folder.count_files"), "package.module", GOOD)


@pytest.mark.parametrize(
    ("name", "summary"),
    [
        ("_count", GOOD), ("Folder._count", GOOD), ("_Folder.count", GOOD), ("Folder.__len__", GOOD), ("nf", GOOD),
        ("count", "Return the number."), ("count", "return the number of open files."), ("count", ""),
        ("count", "Return the number of open files!"), ("count", "Return " + "very " * 30 + "much."),
        ("count", "Return {n} of the open files."), ("count", "Return x -> y for open files."),
        ("count", "See https://example.org for open files."), ("count", "Rückgabe der Zahl offener Dateien."),
        ("count_files", "Call count_files to count the files."), ("FileCount", "The FileCount of a whole folder."),
        ("x" * 100, GOOD),
    ],
)  # fmt: skip
def test_other_forms_are_not_used_as_material(name: str, summary: str):
    assert not describes(item(name), "package.module", summary)


def test_an_ordinary_word_may_stand_in_its_own_description():
    assert describes(item("count"), "package.module", "Return the count of open files.")


def test_modules_that_cannot_be_imported_or_are_copies_give_no_material():
    for module in ("package.some-tasks", "package._vendor.rich"):
        thing = Item(f"{module}.count_files", "function", "", "", (), "")
        assert not describes(thing, module, GOOD)
