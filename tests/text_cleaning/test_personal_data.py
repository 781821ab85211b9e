"""What is somebody's is found, what only looks like it stays."""

import gzip
import json
import random
import re

import pytest
from datatrove.pipeline.formatters import PIIFormatter
from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib.text_cleaning.personal_data import (
    KINDS,
    PersonalData,
    is_card_number,
    is_iban,
    luhn_valid,
    most_digits,
)

everything = PersonalData(KINDS)

# Credentials are put together here so that no scanner of repositories mistakes this file for a leak.
FOUND = {
    "email": ["jane.doe@web.de", "a_b+c@mail.example-host.co.uk", "X@y.museum"],
    "ipv4": ["93.184.216.34", "server 8.8.8.8", "http://1.1.1.1", "the address 9.9.9.9"],
    "phone": [
        "+49 30 901820",
        "+44 (0)20 7946 0958",
        "(212) 664-7665",
        "212-664-7665",
        "1-800-772-1213",
        "212.664.7665",
    ],
    "card": ["4111 1111 1111 1111", "5500005555555559", "3782-822463-10005", "6011000990139424"],
    "iban": ["DE89370400440532013000", "GB82 WEST 1234 5698 7654 32", "NO9386011117947"],
    "ssn": ["219-09-9999", "457-55-5462"],
    "secret": [
        "AKIA" + "IOSFODNN7EXAMPLE",
        "ghp_" + "a1B2" * 9,
        "hf_" + "abcdefghijklmnopq" * 2,
        "eyJ" + "hbGciOiJIUzI1NiJ9" + ".eyJ" + "zdWIiOiIxMjM0NTY3ODkwIn0" + "." + "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
        "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\nabc+/=\n-----END RSA " + "PRIVATE KEY-----",
    ],
}

STAYS = [
    "1234567890", "order 2125550187", "2023-01-15 10:30", "ISBN 978-0-262-13472-9", "1.2.3.4 is a version", "v2.6.18.6",
    "127.0.0.1", "192.168.1.1", "10.0.0.1", "999.1.1.1", "1.2.3.4.5", "4111 1111 1111 1112", "20040410135029",
    "DE89370400440532013001", "AB12 CDEF GHIJ KLMN", "000-12-3456", "666-12-3456", "900-12-3456", "123-00-4567",
    "@decorator", "user@localhost", "a @ b", "x@y", "3.14159265358979323846", "task-" + "a" * 40, "0x4111111111111111",
    "1111111111111111111", "+1.5 2000", "AKIA", "555-0187",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in FOUND.items() for text in texts])
def test_genuine_shapes_are_replaced(kind, text):
    sentence = f"Before {text}, after."
    replaced, found = everything.replace(sentence)
    assert found == {kind: 1}
    assert replaced.startswith("Before ") and replaced.endswith(", after.")
    assert not re.search(r"\d{3}|@|BEGIN|eyJ", replaced)


@pytest.mark.parametrize("text", STAYS)
def test_look_alikes_stay(text):
    assert everything.replace(f"Before {text}, after.") == (f"Before {text}, after.", {})


def test_replacement_by_examples_and_only_of_the_chosen_kinds():
    chosen = PersonalData(["email"], "example")
    assert chosen.replace("me@web.de 93.184.216.34") == ("email@example.com 93.184.216.34", {"email": 1})


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


@given(
    st.lists(st.sampled_from([*(text for texts in FOUND.values() for text in texts), *STAYS, "\n", "word"]), max_size=8)
)
def test_skipping_kinds_for_lack_of_digits_changes_nothing(parts):
    text = " ; ".join(parts)
    with_others, _ = everything.replace(text)
    one_by_one = text
    for kind in KINDS:
        one_by_one, _ = PersonalData([kind]).replace(one_by_one)
    assert with_others == one_by_one
    assert most_digits(text) <= sum(character.isdigit() for character in text)


def test_of_the_addresses_that_datatrove_finds_in_genuine_text_none_is_left(shared_data):
    theirs = PIIFormatter().emails_replacer.regex
    ours = PersonalData(["email"])
    found = 0
    for name in ("us_gov_posts", "longhorn_docs", "peps"):
        with gzip.open(shared_data / "webdocs" / f"{name}.jsonl.gz") as lines:
            for text in (json.loads(line)["text"] for line in lines):
                found += len(theirs.findall(text))
                left = [match for match in theirs.findall(ours.replace(text)[0]) if "git@" not in match]
                assert left == []
    assert found > 500


def test_hostile_text_takes_linear_time():
    rng = random.Random(1)
    for unit in (
        "a@",
        "a.",
        "1 ",
        "1-",
        "+1 ",
        "(1",
        "DE12 ",
        "eyJ",
        "eyJa.",
        "-----BEGIN PRIVATE KEY-----",
        "sk-",
        "a" * 50,
    ):
        everything.replace(unit * (60_000 // len(unit)) + str(rng.random()))
