"""The normal form: against unicodedata on any text, safe on any bytes, frozen across Python versions."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dedup import unicode_fold
from dedup.normalise import MAX_GROWTH, TextBatch, batch_of, normalise


def normal_texts(texts: list[str]) -> list[str]:
    batch = normalise(batch_of(texts))
    return [batch.data[a:b].tobytes().decode() for a, b in zip(batch.starts, batch.starts[1:], strict=False)]


known_to_both = st.characters().filter(lambda c: unicodedata.category(c) != "Cn" or ord(c) >= 0xF0000)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(known_to_both), max_size=4))
def test_any_text_has_the_documented_normal_form(oracle, texts):
    assert normal_texts(texts) == [oracle.normal_form(text) for text in texts]


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_the_normal_form_of_a_normal_form_is_itself(text):
    (once,) = normal_texts([text])
    assert normal_texts([once]) == [once]


almost_utf8 = st.sampled_from(
    [
        "a",
        "é",
        "中",
        "😀",
        b"\xed\xa0\x80",
        b"\xc0\x80",
        b"\xe0\x80\x80",
        b"\xf0\x80\x80\x80",
        b"\xf4\x90\x80\x80",
        b"\xe4\xb8",
    ]
).map(lambda piece: piece if isinstance(piece, bytes) else piece.encode())
raw_bytes = st.one_of(st.binary(max_size=60), st.lists(almost_utf8, max_size=8).map(b"".join))


@settings(max_examples=400, deadline=None)
@given(st.lists(raw_bytes, max_size=4))
def test_bytes_that_are_not_utf8_become_replacement_characters_and_stay_in_their_document(documents):
    starts = np.cumsum([0, *map(len, documents)], dtype=np.int64)
    batch = normalise(TextBatch(np.frombuffer(b"".join(documents), np.uint8), starts))
    together = [batch.data[a:b].tobytes() for a, b in zip(batch.starts, batch.starts[1:], strict=False)]
    for document, normal in zip(documents, together, strict=True):
        alone = normalise(TextBatch(np.frombuffer(document, np.uint8), np.array([0, len(document)])))
        assert normal == alone.data[: alone.starts[-1]].tobytes()
        assert normal.decode() == normal_texts([decoded_byte_by_byte(document)])[0]


def decoded_byte_by_byte(document: bytes) -> str:
    """UTF-8 where it is valid, one U+FFFD for every byte where it is not."""
    out, at = [], 0
    while at < len(document):
        for length in (1, 2, 3, 4):
            try:
                out.append(document[at : at + length].decode())
            except UnicodeDecodeError:
                continue
            break
        else:
            out.append("\ufffd")
            length = 1
        at += length
    return "".join(out)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Éclair", "e\u0301CLAIR"),  # precomposed and decomposed
        ("ﬁne", "fine"),
        ("ＦＵＬＬ　ｗｉｄｔｈ", "full width"),
        ("Straße", "STRASSE"),
        ("한국어", unicodedata.normalize("NFD", "한국어")),
        ("so\u00adft\u200b hy\ufeffphen", "soft hyphen"),
        (" tabs\tand\r\nlines\u2028and\x00controls ", "tabs and lines and controls"),
        ("ｶﾞ", "ガ"),
    ],
)
def test_spellings_of_one_text_share_a_normal_form(one, other):
    assert normal_texts([one]) == normal_texts([other])


def test_punctuation_and_digits_are_kept():
    assert normal_texts(["1 - 1", "1 + 1", "!?"]) == ["1 - 1", "1 + 1", "!?"]


@pytest.mark.slow
def test_the_frozen_tables_are_those_of_this_python_wherever_unicode_14_had_the_character():
    frozen, current = unicode_fold.load_tables(), unicode_fold.build_tables()
    everything = np.arange(unicode_fold.CODE_POINTS)

    def look_up(tables, entries):
        return entries[tables.page[everything >> 8].astype(np.int64) << 8 | everything & 0xFF]

    def expansions(tables):
        fold = look_up(tables, tables.fold).astype(np.int64)
        return {
            int(cp): tuple(tables.expansion[entry >> 5 & 0x3FFFFFF :][: entry & 31])
            for cp, entry in zip(everything, fold, strict=True)
            if entry >= unicode_fold.EXPANDS and entry != unicode_fold.DROPPED
        }

    was_assigned = (look_up(frozen, frozen.kind) != unicode_fold.SEPARATOR) | (look_up(frozen, frozen.fold) != 0)
    if unicodedata.unidata_version == unicode_fold.FROZEN_VERSION:
        was_assigned[:] = True
    plain = was_assigned & (look_up(frozen, frozen.fold) < unicode_fold.EXPANDS)
    assert np.array_equal(look_up(frozen, frozen.kind)[was_assigned], look_up(current, current.kind)[was_assigned])
    assert np.array_equal(look_up(frozen, frozen.fold)[plain], look_up(current, current.fold)[plain])
    assert expansions(frozen).items() <= expansions(current).items()


def test_no_code_point_grows_more_than_the_buffer_allows():
    growth = 0.0
    for code_point in range(unicode_fold.CODE_POINTS):
        if not 0xD800 <= code_point < 0xE000:
            before = len(chr(code_point).encode())
            growth = max(growth, len(unicode_fold.folded(chr(code_point)).encode()) / before)
    assert growth == MAX_GROWTH
    worst = "\ufdfa" * 1000
    assert len(normal_texts([worst])[0].encode()) <= MAX_GROWTH * len(worst.encode())
