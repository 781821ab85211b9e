"""Personal data and credentials, found by shape, validated, and replaced in place.

Each kind has an anchor that most texts lack (an @, a digit, a known prefix); only texts with it meet the expression.
A shape is not enough: a card number must have an issuer's prefix and length and pass Luhn (ISO/IEC 7812), an IBAN its
country's length and modulo 97 (ISO 13616), an address must be public (RFC 6890 has the rest), a telephone number must
be written like one: ten digits in a row are a number.
Trap: expressions are linear by construction (no nested repetition over the same characters); texts come from strangers.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

_EMAIL = re.compile(  # git@ is how repositories are addressed, nobody's mailbox
    r"(?<![\w.+-])(?!git@)[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![\w-])"
)
# "Nothing of that sort before" stands after the first character, so that the search can skip to that one's class.
_IPV4 = re.compile(r"\d(?<![\w.]\d)\d{0,2}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\w-]|\.\d)")
_INTERNATIONAL = re.compile(  # +49 30 1234 5678
    r"\+(?<![\w+.-]\+)\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]\d{2,8}){1,5}(?![\w-]|\.\d)"
)
_AREA_IN_BRACKETS = re.compile(r"\((?<![\w+.-]\()[2-9]\d{2}\) ?[2-9]\d{2}[ .-]\d{4}(?![\w-]|\.\d)")  # (212) 555-0187
_NORTH_AMERICAN = re.compile(  # 212-555-0187, 1-212-555-0187
    r"[1-9](?<![\w+.-].)(?:(?<=1)[ .-][2-9]|(?<=[2-9]))\d{2}([.-])[2-9]\d{2}\1\d{4}(?![\w-]|\.\d)"
)
_CARD = re.compile(r"[2-6](?<![\w.-].)\d{3}(?:[ -]?\d){8,14}\d(?![\w-]|\.\d)")
_IBAN = re.compile(r"[A-Z](?<!\w.)[A-Z]\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_SSN = re.compile(r"[0-8](?<![\w.-].)\d{2}(?<!000|666)-(?!00)\d{2}-(?!0000)\d{4}(?![\w-]|\.\d)")


def _credential(prefix: str, rest: str) -> tuple[str, re.Pattern[str]]:
    return prefix, re.compile(rf"{prefix}(?<![A-Za-z0-9_]{prefix})(?:{rest})(?![A-Za-z0-9_])")


_CREDENTIALS = (
    (
        "PRIVATE KEY-----",
        re.compile(
            r"-----BEGIN (?:[A-Z]{1,20} ){0,3}PRIVATE KEY-----[A-Za-z0-9+/=\s:,-]{0,10000}?"
            r"-----END (?:[A-Z]{1,20} ){0,3}PRIVATE KEY-----"
        ),
    ),
    _credential("AKIA", "[A-Z0-9]{16}"),
    _credential("ASIA", "[A-Z0-9]{16}"),
    *(_credential(f"gh{kind}_", "[A-Za-z0-9]{36,251}") for kind in "pousr"),
    _credential("github_pat_", "[A-Za-z0-9_]{22,255}"),
    _credential("glpat-", "[A-Za-z0-9_-]{20,64}"),
    _credential("xox", "[abeoprs]-[A-Za-z0-9-]{10,250}"),
    _credential("AIza", "[A-Za-z0-9_-]{35}"),
    _credential("hf_", "[A-Za-z]{34}"),
    _credential("sk_live_", "[A-Za-z0-9]{16,250}"),
    _credential("rk_live_", "[A-Za-z0-9]{16,250}"),
    _credential("sk-", "(?:[a-z]{2,12}-)?[A-Za-z0-9_]{32,250}"),
    _credential("eyJ", r"[A-Za-z0-9_-]{10,4000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,4000}"),
)

_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28,
    "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18,
    "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22,
    "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LI": 21, "LT": 20, "LU": 20,
    "LV": 21, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18, "NO": 15, "PK": 24,
    "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SE": 24, "SI": 19, "SK": 24, "SM": 27,
    "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
}  # fmt: skip


def luhn_valid(digits: str) -> bool:
    """Whether the check digit of ISO/IEC 7812 fits."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def is_card_number(text: str) -> bool:
    """Whether these digits, with spaces or hyphens, are a payment card's: issuer, length, Luhn."""
    digits = re.sub(r"[ -]", "", text)
    lengths: tuple[int, ...] = ()
    if digits[0] == "4":
        lengths = (13, 16, 19)
    elif "51" <= digits[:2] <= "55" or "2221" <= digits[:4] <= "2720":
        lengths = (16,)
    elif digits[:2] in ("34", "37"):
        lengths = (15,)
    elif digits[:2] in ("36", "38") or "300" <= digits[:3] <= "305":
        lengths = (14,)
    elif digits[:4] == "6011" or digits[:2] == "65" or "3528" <= digits[:4] <= "3589" or digits[:2] == "62":
        lengths = (16, 17, 18, 19)
    return len(digits) in lengths and len(set(digits)) > 1 and luhn_valid(digits)


def is_iban(text: str) -> bool:
    """Whether country, length and check digits of ISO 13616 fit."""
    compact = text.replace(" ", "")
    if _IBAN_LENGTHS.get(compact[:2]) != len(compact):
        return False
    return int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4])) % 97 == 1


def is_public_address(text: str) -> bool:
    """Whether this is an IPv4 address that belongs to somebody: not private, documentation, loopback or multicast."""
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return address.is_global and not address.is_multicast


_ADDRESS_CONTEXT = re.compile(
    r"\b(?:ip|ips|ipv4|address|addr|dns|host|hosts|server|nameserver|ping|from|://)\W{0,3}(?:\w+ )?$", re.I
)


def _is_address_not_version(found: re.Match[str]) -> bool:
    """1.15.8.1 is an address and a version number; small numbers need a word before them that speaks of addresses."""
    octets = [int(octet) for octet in found.group().split(".")]
    if octets[0] < 24 and max(octets) < 100:
        before = found.string[max(0, found.start() - 40) : found.start()]
        if not _ADDRESS_CONTEXT.search(before):
            return False
    return is_public_address(found.group())


def is_telephone_number(text: str) -> bool:
    """Whether the digits fit in an international number (E.164: at most 15) and are not all alike."""
    digits = re.sub(r"\D", "", text)
    return 8 <= len(digits) <= 15 and len(set(digits)) > 2


@dataclass(frozen=True)
class _Kind:
    """`searches` are (anchor, expression): a text without the anchor is not searched."""

    searches: tuple[tuple[str, re.Pattern[str]], ...]
    tag: str
    example: str
    valid: Callable[[re.Match[str]], bool] | None = None


# In this order: a private key before what may stand inside it, longer numbers before their parts.
_KINDS = {
    "secret": _Kind(_CREDENTIALS, "[SECRET]", "<secret>"),
    "email": _Kind((("@", _EMAIL),), "[EMAIL]", "email@example.com"),
    "iban": _Kind((("", _IBAN),), "[IBAN]", "GB33BUKB20201555555555", lambda found: is_iban(found.group())),
    "card": _Kind((("", _CARD),), "[CARD]", "4111 1111 1111 1111", lambda found: is_card_number(found.group())),
    "phone": _Kind(
        (("+", _INTERNATIONAL), ("(", _AREA_IN_BRACKETS), ("", _NORTH_AMERICAN)),
        "[PHONE]",
        "(202) 555-0123",
        lambda found: is_telephone_number(found.group()),
    ),
    "ssn": _Kind((("-", _SSN),), "[SSN]", "078-05-1120"),
    "ipv4": _Kind((("", _IPV4),), "[IP]", "192.0.2.1", _is_address_not_version),
}
KINDS = tuple(_KINDS)
_FEWEST_DIGITS = {"card": 13, "phone": 8, "ssn": 9, "ipv4": 4}
_NUMBER_STRETCH = re.compile(r"\d[\d .()-]{5,}\d")


class PersonalData:
    """Replaces the chosen kinds."""

    def __init__(self, kinds: Iterable[str], replacement: str = "tag"):
        """`replacement` is "tag" ([EMAIL]) or "example" (a harmless value of the same shape)."""
        chosen = set(kinds)
        self._kinds = [(name, kind) for name, kind in _KINDS.items() if name in chosen]
        self._replacements = {name: getattr(kind, replacement) for name, kind in self._kinds}

    def replace(self, text: str) -> tuple[str, dict[str, int]]:
        """Return the text with every find replaced, and how many there were of each kind that occurred."""
        found: dict[str, int] = {}
        digits = most_digits(text)
        for name, kind in self._kinds:
            if digits < _FEWEST_DIGITS.get(name, 0):
                continue
            count = 0
            for anchor, expression in kind.searches:
                if anchor in text:
                    text, here = _substitute(text, expression, kind.valid, self._replacements[name])
                    count += here
            if count:
                found[name] = count
        return text, found


def most_digits(text: str) -> int:
    """Return the greatest number of digits in one stretch of digits and the signs that group them."""
    return max((sum(map(str.isdigit, stretch)) for stretch in _NUMBER_STRETCH.findall(text)), default=0)


def _substitute(text, expression, valid, replacement) -> tuple[str, int]:
    if valid is None:
        return expression.subn(lambda _: replacement, text)
    count = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal count
        if not valid(match):
            return match.group()
        count += 1
        return replacement

    return expression.sub(replace, text), count
