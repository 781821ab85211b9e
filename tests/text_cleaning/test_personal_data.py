"""What is somebody's is found, what only looks like it stays, and the compiled scan loses nothing."""

import gzip
import json
import random
from collections import Counter
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
from datatrove.pipeline.formatters import PIIFormatter
from hypothesis import given
from hypothesis import strategies as st
from labelled_personal_data import labelled_texts

import pipeline_lib.text_cleaning.personal_data as module
from pipeline_lib.config.clean import PersonalDataKind, PersonalDataSettings
from pipeline_lib.text_cleaning.arrow_text import text_buffers
from pipeline_lib.text_cleaning.personal_data import PersonalData
from pipeline_lib.text_cleaning.personal_data_kinds import KINDS, is_card_number, is_iban, luhn_valid
from pipeline_lib.text_cleaning.personal_data_scan import GROUPED, find_places, with_plain_signs

everything = PersonalData(KINDS)


def finds_in(text: str) -> set[tuple[str, int, int]]:
    """(kind, first byte, end) of what the scan and the expressions find together."""
    data, offsets = text_buffers(pa.array([text], pa.large_string()))
    return {(everything.kinds[find.kind], find.first, find.last) for find in everything.find(data, offsets)}


def finds_of_expressions_alone(text: str) -> set[tuple[str, int, int]]:
    """The oracle: every expression over the whole text, nothing skipped."""
    taken: list[tuple[str, int, int]] = []
    for kind in KINDS:
        spans = set()
        for search in KINDS[kind].searches:
            for match in search.expression.finditer(with_plain_signs(text) if search.place in GROUPED else text):
                if (span := search.accept(match)) is not None:
                    spans.add(tuple(len(text[:place].encode()) for place in span))
        for first, last in sorted(spans, key=lambda span: (span[0], -span[1])):
            if all(last <= other[1] or first >= other[2] for other in taken):
                taken.append((kind, first, last))
    return set(taken)


def test_precision_and_recall_on_the_labelled_sentences():
    right, found, wanted = Counter(), Counter(), Counter()
    for text, labels in labelled_texts():
        expected = {(kind, len(text[:a].encode()), len(text[:b].encode())) for kind, a, b in labels}
        finds = finds_in(text)
        right.update(kind for kind, _, _ in finds & expected)
        found.update(kind for kind, _, _ in finds)
        wanted.update(kind for kind, _, _ in expected)
    assert set(wanted) == set(KINDS) and wanted.total() > 100
    assert right.total() / found.total() >= 0.95
    assert right.total() / wanted.total() >= 0.9
    assert all(right[kind] / wanted[kind] >= 0.85 for kind in KINDS)


@given(
    st.lists(
        st.one_of(
            st.sampled_from([text for text, _ in labelled_texts()]),
            st.text(alphabet="0123456789+-(). :@abAZé_/", max_size=30),
            st.sampled_from(["\n", " ", "é", "：", "sk-", "eyJ", "DE89", "tel: "]),
            st.sampled_from(["\u00a0", "\u202f", "\u2011", "-", "..", "a" * 40, "." * 30, "ann@web.de"]),
            st.text(alphabet="12+\u00a0\u202f\u2011 ", max_size=20),
        ),
        max_size=6,
    ).map("".join)
)
def test_the_scan_loses_nothing_that_the_expressions_find(text):
    assert finds_in(text) == finds_of_expressions_alone(text)


def test_the_scan_loses_nothing_in_genuine_text(shared_data):
    with gzip.open(shared_data / "webdocs" / "us_gov_posts.jsonl.gz") as lines:
        texts = [json.loads(line)["text"] for line in lines][:300]
    assert sum(len(finds_in(text)) for text in texts) > 40
    assert all(finds_in(text) == finds_of_expressions_alone(text) for text in texts)


def test_a_batch_is_its_texts_one_by_one_and_untouched_batches_are_not_copied():
    texts = [text for text, _ in labelled_texts()]
    batch, counts = everything.replace_batch(pa.array(["x", *texts], pa.string())[1:])
    alone = [everything.replace(text) for text in texts]
    assert batch.to_pylist() == [text for text, _ in alone]
    assert [dict(zip(everything.kinds, row, strict=True)) for row in counts.tolist()] == [
        {kind: found.get(kind, 0) for kind in everything.kinds} for _, found in alone
    ]
    batch.validate(full=True)
    clean = pa.array(["nothing", "", "here 12"], pa.large_string())
    same, none = everything.replace_batch(clean)
    assert same.buffers()[2].address == clean.buffers()[2].address and not none.any()
    assert everything.replace_batch(pa.array([], pa.string()))[1].shape == (0, len(KINDS))


@pytest.mark.parametrize("replacement", ["tag", "stable"])
def test_a_second_pass_finds_nothing(replacement):
    cleaner = PersonalData(KINDS, replacement, seed=3)
    for text, labels in labelled_texts():
        replaced, found = cleaner.replace(text)
        assert cleaner.replace(replaced) == (replaced, {}), text
        assert sum(found.values()) <= len(labels)


def test_stable_stand_ins_are_equal_exactly_where_the_values_are():
    cleaner = PersonalData(["email", "phone"], "stable", seed=1)
    text, found = cleaner.replace("From Ann@web.de to bob@web.de, cc ann@web.de; Phone: 212-664-7665, (212) 664 7665.")
    first, second, third = (word.rstrip(",;") for word in text.split() if "@" in word)
    assert first == third != second
    assert found == {"email": 3, "phone": 2}
    one, other = text.rstrip(".").split("Phone: ")[1].split(", ")
    assert one == other and one.startswith("555-01")
    assert PersonalData(["email"], "stable", seed=2).replace("ann@web.de") != cleaner.replace("ann@web.de")


def test_only_the_chosen_kinds_are_replaced_and_all_kinds_can_be_chosen():
    chosen = PersonalData(["email"])
    assert chosen.replace("me@web.de 93.184.216.34") == ("[EMAIL] 93.184.216.34", {"email": 1})
    assert PersonalData([]).replace("me@web.de") == ("me@web.de", {})
    assert set(get_args(PersonalDataKind)) == set(KINDS) == set(PersonalDataSettings().kinds)
    with pytest.raises(ValueError, match="there is no kind of personal data 'name'"):
        PersonalData(["name"])


@given(st.integers(0, 10**14 - 1), st.integers(0, 9))
def test_one_check_digit_in_ten_is_a_card_number(number, wrong):
    body = f"4{number:014d}"
    valid = [digit for digit in "0123456789" if luhn_valid(body + digit)]
    assert len(valid) == 1
    assert is_card_number(body + str(wrong)) == (str(wrong) == valid[0] and len(set(body + str(wrong))) > 1)


@given(st.integers(0, 10**18 - 1), st.integers(0, 21), st.integers(1, 9))
def test_an_iban_with_any_one_digit_changed_is_none(account, position, change):
    check = 98 - int(f"{account:018d}131400") % 97  # D = 13, E = 14
    iban = f"DE{check:02d}{account:018d}"
    assert is_iban(iban)
    if position >= 2:
        digit = str((int(iban[position]) + change) % 10)
        assert not is_iban(iban[:position] + digit + iban[position + 1 :])


@pytest.mark.slow
def test_of_the_addresses_that_datatrove_finds_in_genuine_text_none_is_left(shared_data):
    theirs = PIIFormatter().emails_replacer.regex
    ours = PersonalData(["email"])
    found = 0
    for name in ("us_gov_posts", "longhorn_docs", "peps"):
        with gzip.open(shared_data / "webdocs" / f"{name}.jsonl.gz") as lines:
            texts = [json.loads(line)["text"] for line in lines]
        found += sum(len(theirs.findall(text)) for text in texts)
        replaced, _ = ours.replace_batch(pa.array(texts, pa.large_string()))
        left = {match for text in replaced.to_pylist() for match in theirs.findall(text)}
        assert {match for match in left if "git@" not in match and "example" not in match.partition("@")[2]} == set()
    assert found > 500


def test_hostile_text_takes_linear_work():
    """Bounds the bytes that the expressions are shown, not the time: a few looks at each byte of any text."""
    rng = random.Random(1)
    units = ("a@", "a.", "1 ", "1-", "+1 ", "(1", "1:", "2001:", "DE12 ", "eyJ", "eyJa.", "sk-", "A", "-", "a" * 50)
    for unit in (*units, "-----BEGIN PRIVATE KEY-----", "4111 1111 1111 1111 ", "tel: 1234567"):
        text = unit * (60_000 // len(unit)) + str(rng.random())
        data, offsets = text_buffers(pa.array([text], pa.large_string()))
        places = find_places(data, offsets)
        assert (places[:, 3] - places[:, 2]).sum() <= 4 * len(text), unit
        replaced, found = everything.replace(text)
        assert (replaced == text) == (not found), unit


@pytest.mark.parametrize(
    ("text", "replaced"),
    [
        ("Email:-info@company.com", "Email:-[EMAIL]"),
        ("-jane.doe@webmail.de", "-[EMAIL]"),
        ("--john@acme.com", "--[EMAIL]"),
        ("see ...jane@acme.com", "see ...[EMAIL]"),
        ("Office" + "." * 70 + "info@acme.com", "Office" + "." * 70 + "[EMAIL]"),
        ("é" + "." * 70 + "info@acme.com", "é" + "." * 70 + "[EMAIL]"),
        ("Zoë-info@acme.com", "[EMAIL]"),
        ("..git@github.com --git@github.com", "..git@github.com --git@github.com"),
        ("@-name@host.com @name@host.com", "@-name@host.com @name@host.com"),
        ("a" * 65 + ".jane@acme.com", "a" * 65 + ".jane@acme.com"),
    ],
)
def test_dashes_and_dots_before_a_mailbox_do_not_hide_it(text, replaced):
    assert PersonalData(["email"]).replace(text)[0] == replaced


@pytest.mark.parametrize("space", ["\u00a0", "\u202f", "\u2009", "\u2007", " "])
@pytest.mark.parametrize("hyphen", ["\u2011", "\u2010", "-"])
def test_spaces_and_hyphens_that_keep_a_number_on_one_line_are_spaces_and_hyphens(space, hyphen):
    text = (
        "Tél. +33 1 42 68 53 00, IBAN DE89 3704 0044 0532 0130 00, card 4111 1111 1111 1111 or 5500~0000~0000~0004;"
        " 212~664~7665 and 536~22~1726, 12 345 678 901 234 of 1 000 000."
    )
    typed = text.replace(" ", space).replace("~", hyphen)
    replaced, found = everything.replace(typed)
    assert found == {"iban": 1, "card": 2, "phone": 2, "ssn": 1}
    expected = "Tél. [PHONE], IBAN [IBAN], card [CARD] or [CARD]; [PHONE] and [SSN], 12 345 678 901 234 of 1 000 000."
    assert replaced == expected.replace(" ", space)
    stable = PersonalData(["phone"], "stable", seed=1)
    assert stable.replace(f"+33{space}1{space}42{space}68{space}53{space}00") == stable.replace("+33 1 42 68 53 00")


@pytest.mark.parametrize("unit", ["203.5.112.9 ", "+1 212-664-7665 ", "4111-1111-1111-1111  "])
def test_finding_a_byte_takes_linear_work_however_many_finds_one_stretch_has(monkeypatch, unit):
    encoded = []
    bytes_between = module._bytes

    def counted(text, at, to):
        encoded.append(abs(to - at))
        return bytes_between(text, at, to)

    monkeypatch.setattr(module, "_bytes", counted)
    text = "é " + unit * 1000
    assert len(find_places(*text_buffers(pa.array([text], pa.large_string())))) == 1, "one stretch"
    replaced, found = everything.replace(text)
    assert sum(found.values()) == 1000 and not any(map(str.isdigit, replaced))
    assert sum(encoded) <= 4 * len(text)


@pytest.mark.parametrize("between", [" ", "  ", "\u00a0", " or "])
def test_numbers_in_a_row_are_all_found(between):
    cards = ["4111 1111 1111 1111", "5500 0000 0000 0004", "378282246310005", "4111-1111-1111-1111"] * 3
    replaced, found = PersonalData(["card"]).replace("cards: " + between.join(cards) + ".")
    assert replaced == "cards: " + between.join(["[CARD]"] * len(cards)) + "." and found == {"card": len(cards)}
    ibans = ["DE89 3704 0044 0532 0130 00", "GB82 WEST 1234 5698 7654 32"] * 2
    assert PersonalData(["iban"]).replace(between.join(ibans))[1] == {"iban": len(ibans)}


def test_bytes_that_are_not_utf8_do_not_stop_the_scan():
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, 20_000).astype(np.uint8)
    address = b" jane.roe@mail.org "
    data[10_000 : 10_000 + len(address)] = np.frombuffer(address, np.uint8)
    finds = [(find.first, find.last) for find in everything.find(data, np.array([0, 5, 5, 20_000]))]
    assert (10_001, 10_000 + len(address) - 1) in finds
