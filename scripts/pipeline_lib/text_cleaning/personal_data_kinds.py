"""What personal data and credentials look like, kind by kind, and what else must hold before one is believed.

A shape is not enough: a card number must have an issuer's prefix and length and pass Luhn (ISO/IEC 7812), an IBAN its
country's length and modulo 97 (ISO 13616), an address must be public (RFC 6890 lists the rest), a telephone number must
be written like one or be introduced as one: ten digits in a row are a number. What is reserved for examples
(example.com, 192.0.2.0/24, 2001:db8::/32) belongs to nobody and stays.
Trap: expressions are linear by construction (no nested repetition over the same characters); texts come from strangers.
"""

import base64
import ipaddress
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from .personal_data_scan import EMAIL, IBAN, IPV6, NUMBER, SECRET

Span = tuple[int, int]
Accept = Callable[[re.Match[str]], Span | None]

CONTEXT = 48
"""Characters before a find that are looked at for a word that introduces it."""


@dataclass(frozen=True)
class Search:
    """Where to look (a place of the scan), for what, and what of the match is meant, or None when it is not believed.

    reach: bytes beyond the place that a match and what must not follow it can take.
    """

    place: int
    expression: re.Pattern[str]
    accept: Accept
    reach: int = 400


def _number(expression: re.Pattern[str], accept: Accept) -> Search:
    return Search(NUMBER, expression, accept, reach=8)  # the place is the whole stretch of digits


@dataclass(frozen=True)
class Kind:
    """One kind: its searches, the tag that replaces a find, and the stand-in for a value with the hash n."""

    searches: tuple[Search, ...]
    tag: str
    stand_in: Callable[[int], str]


def _whole(match: re.Match[str]) -> Span:
    return match.span()


def _last_group(match: re.Match[str]) -> Span:
    return match.span(1)


def _before(match: re.Match[str]) -> str:
    return match.string[max(0, match.start() - CONTEXT) : match.start()]


# -- mailboxes ---------------------------------------------------------------------------------------------------------

_EMAIL = re.compile(  # git@ is how repositories are addressed; @name@host is a handle; dashes and dots may lead to one
    r"(?<![A-Za-z0-9_@])(?<![A-Za-z0-9_@][.+-])(?!git@)[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}@"
    r"((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}([A-Za-z]{2,24}))(?![A-Za-z0-9_-])"
)
_RESERVED_DOMAIN = re.compile(r"(?:.*\.)?(?:example(?:\.(?:com|org|net|edu))?|test|invalid|localhost)", re.I)
_USER_IN_ADDRESS = re.compile(r"://([^\s/@]*:)$")
_APOSTROPHE = re.compile(r"(?<![A-Za-z])[OoDd]['’]$")
_VERSION_OR_SCALE = re.compile(r"\d+(?:\.\d|x\.)")  # package@1.2.3-rc.one, icon@2x.png


_SIGNS = frozenset(".+-")


def _may_be_local(character: str) -> bool:
    return character.lower() != character.upper() or character in "0123456789_.+-"


def accept_email(match: re.Match[str]) -> Span | None:
    """The mailbox, with what belongs to it although ASCII words end there, unless its domain is nobody's.

    That is letters beyond ASCII (RFC 6531), the apostrophe of O'Neill, and user and password in a web address. Signs
    before the first letter ("- jane@acme.com" without its space, a table of contents' dots) are not part of it.
    """
    if _RESERVED_DOMAIN.fullmatch(match[1]) or _VERSION_OR_SCALE.match(match[1]):
        return None
    text, begin = match.string, match.start()
    if user := _USER_IN_ADDRESS.search(_before(match)):
        return begin - len(user[1]), match.end()
    while begin and _may_be_local(text[begin - 1]) and not _SIGNS.issuperset(text[max(0, begin - 2) : begin]):
        begin -= 1
    while text[begin] in _SIGNS:
        begin += 1
    return begin - 2 * bool(_APOSTROPHE.search(text[max(0, begin - 3) : begin])), match.end()


# -- addresses ---------------------------------------------------------------------------------------------------------

_IPV4 = re.compile(r"\d(?<![\w.]\d)\d{0,2}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}(?:::?[0-9A-Fa-f]{1,4}){1,7}(?:::)?(?!\w|:[\w:]|\.\d)")
_ADDRESS_CONTEXT = re.compile(
    r"(?<!\[)\b(?:ip|ips|ipv4|address|addr|dns|host|hosts|server|nameserver|ping|from)\W{0,3}(?:\w+ )?$|://$", re.I
)
_VERSION_CONTEXT = re.compile(r"(?:\b(?:version|ver|release|build|rev|revision)\W{0,3}|[A-Za-z]/)$", re.I)


def accept_ipv4(match: re.Match[str]) -> Span | None:
    """A public address. 1.15.8.1 is an address and a version: small numbers need a word that speaks of addresses."""
    before = _before(match)
    if not is_public_address(match[0]) or _VERSION_CONTEXT.search(before):
        return None
    octets = [int(octet) for octet in match[0].split(".")]
    if octets[0] < 24 and max(octets) < 100 and not _ADDRESS_CONTEXT.search(before):
        return None
    return match.span()


def accept_ipv6(match: re.Match[str]) -> Span | None:
    """A global unicast address."""
    return match.span() if is_public_address(match[0]) else None


def is_public_address(text: str) -> bool:
    """Whether this is an IP address that belongs to somebody: not private, documentation, loopback or multicast."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return address.is_global and not address.is_multicast


# -- telephone numbers -------------------------------------------------------------------------------------------------

_INTERNATIONAL = re.compile(  # +49 30 1234 5678, +4930123456789
    r"\+(?<![\w+.-]\+)(?:[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]\d{2,8}){1,5}|[1-9]\d{9,12})"
    r"(?![\w-]|\.\d)"
)
_AREA_IN_BRACKETS = re.compile(r"\((?<![\w+.-]\()[2-9]\d{2}\)[ -]?[2-9]\d{2}[ .-]\d{4}(?![\w-]|\.\d)")  # (212) 555-0187
_NORTH_AMERICAN = re.compile(  # 212-555-0187, 1-212-555-0187
    r"[1-9](?<![\w+.-].)(?:(?<=1)[ .-][2-9]|(?<=[2-9]))\d{2}([.-])[2-9]\d{2}\1\d{4}(?![\w-]|\.\d)"
)
_INTRODUCED = re.compile(r"[(+]?\d(?<![\w+.-].)(?:(?:[ ./-]|\) ?| ?\()?\d){6,14}(?![\w-]|[./]\d)")
_TELEPHONE_CONTEXT = re.compile(
    r"(?:\b(?:tel|telephone|phone|fax|telefax|hotline|whatsapp|sms|cellphone|telefon|telefono|teléfono|téléphone|"
    r"(?:mobile|cell)(?=[ ]?[:.]|\s+(?:phone|number|no\b))|"
    r"call (?:(?:us|me|him|her|them|now|toll.free) ){0,2}(?=at|on|:))\b|"
    r"电话|電話|手机|☎|📞)[\s:：.#(/+-]{0,4}"
    r"(?:(?:number|num|no|nr|phone|fax|is|at|on|us|me)\b[\s:.#(+-]{0,3}){0,3}$",
    re.I,
)
_FICTIONAL = re.compile(r"1?(?:\d{3})?55501\d\d")
_DATE_OR_YEARS = re.compile(
    r"\(?(?:(?:19|20)\d\d[./-](?:(?:19|20)\d\d|\d{1,2}[./-]\d{1,2})|\d{1,2}[./-]\d{1,2}[./-](?:19|20)?\d\d)\)?"
)


def accept_telephone(match: re.Match[str]) -> Span | None:
    """Digits that fit in an international number (E.164: 8 to 15), not all alike and not reserved for fiction."""
    digits = _digits(match[0])
    if not 8 <= len(digits) <= 15 or len(set(digits)) < 3 or _FICTIONAL.fullmatch(digits):
        return None
    return match.span()


def accept_introduced_telephone(match: re.Match[str]) -> Span | None:
    """Seven to fifteen digits after a word such as "phone", which are no date."""
    digits = _digits(match[0])
    if len(set(digits)) < 3 or _FICTIONAL.fullmatch(digits) or _DATE_OR_YEARS.match(match[0]):
        return None
    if not _TELEPHONE_CONTEXT.search(_before(match)):
        return None
    return match.start() + (match[0][0] == "(" and ")" not in match[0]), match.end()


def _digits(text: str) -> str:
    return re.sub(r"[^0-9]", "", text)


# -- cards, accounts, social security ----------------------------------------------------------------------------------

_CARD = re.compile(r"[2-6](?<![\w.-].)\d{3}(?:[ -]?\d){8,20}")
_CARD_GAP = re.compile("[ -]")
_CARD_CONTEXT = re.compile(r"\b(?:card|credit|debit|visa|mastercard|amex|maestro|unionpay|diners|discover|cc)\b", re.I)
_CARD_GROUPS = re.compile(r"\d{4}([ -])(?:\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{6}\1\d{4,5})")
_SSN = re.compile(r"[0-8](?<![\w.-].)\d{2}(?<!000|666)-(?!00)\d{2}-(?!0000)\d{4}(?![\w-]|\.\d)")
_INTRODUCED_SSN = re.compile(r"[0-8](?<![\w.-].)\d{2}(?<!000|666) ?(?!00)\d{2} ?(?!0000)\d{4}(?![\w-]|\.\d)")
_SSN_CONTEXT = re.compile(r"\b(?:ssn|social security)(?: number| no)?(?: is|\W){0,4}$", re.I)
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]){10,30}")

IBAN_LENGTHS = {
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


def accept_card(match: re.Match[str]) -> Span | None:
    """The longest card number that begins and ends where a group of digits does: a date may stand before it.

    One number in ten passes Luhn, and identifiers of 13 to 19 digits are common: digits without the usual groups are
    believed as 15 or 16 in a row that no address or assignment leads to, or after a word that speaks of cards.
    """
    text = match.string
    introduced = _CARD_CONTEXT.search(_before(match)) is not None
    later = (_CARD.match(text, match.start() + gap.end()) for gap in _CARD_GAP.finditer(match[0]))
    for begin, stop in [match.span(), *(found.span() for found in later if found)]:
        for end in range(stop, begin + 12, -1):
            if end < len(text) and (text[end].isalnum() or text[end] == "_"):
                continue
            written = text[begin:end]
            if not is_card_number(written):
                continue
            before = text[max(0, begin - 1) : begin]
            plain = written.isdigit() and len(written) in (15, 16) and before not in list("/=&#:")
            if introduced or plain or _CARD_GROUPS.fullmatch(written):
                return begin, end
    return None


def is_iban(text: str) -> bool:
    """Whether country, length and check digits of ISO 13616 fit."""
    compact = text.replace(" ", "")
    if IBAN_LENGTHS.get(compact[:2]) != len(compact) or not "02" <= compact[2:4] <= "98":
        return False
    return int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4])) % 97 == 1


def accept_iban(match: re.Match[str]) -> Span | None:
    """As many characters as the country has, when the check digits fit and no more letters follow."""
    text, end = match.string, match.start()
    for _ in range(IBAN_LENGTHS.get(match[0][:2], 99)):
        end += end < match.end() and text[end] == " "
        if end >= match.end():
            return None
        end += 1
    if end < len(text) and text[end].isalnum():
        return None
    return (match.start(), end) if is_iban(text[match.start() : end]) else None


def accept_introduced_ssn(match: re.Match[str]) -> Span | None:
    """Nine digits after the words that name them."""
    return match.span() if _SSN_CONTEXT.search(_before(match)) else None


# -- credentials -------------------------------------------------------------------------------------------------------


def _key(prefix: str, rest: str, accept: Accept = _whole) -> Search:
    return Search(SECRET, re.compile(rf"(?<![A-Za-z0-9_]){prefix}{rest}(?![A-Za-z0-9_])"), accept)


def accept_random(match: re.Match[str]) -> Span | None:
    """Only what looks drawn by lot: figures, and many different characters. `sk-` also begins the names of styles."""
    return match.span() if any(c.isdigit() for c in match[0]) and len(set(match[0])) >= 14 else None


def accept_jwt(match: re.Match[str]) -> Span | None:
    """A header that decodes to JSON with an algorithm (RFC 7519)."""
    header = match[0].partition(".")[0]
    try:
        content = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    except (ValueError, RecursionError):
        return None
    return match.span() if isinstance(content, dict) and "alg" in content else None


_API_KEYS = (
    _key("A(?:KI|SI)A", "[A-Z0-9]{16}"),
    _key("AIza", "[A-Za-z0-9_-]{35}"),
    _key("GOCSPX-", "[A-Za-z0-9_-]{28}"),
    _key("gh[pousr]_", "[A-Za-z0-9]{36,251}"),
    _key("github_pat_", "[A-Za-z0-9_]{22,255}", accept_random),
    _key("glpat-", "[A-Za-z0-9_-]{20,64}", accept_random),
    _key("xox[abeoprs]-", "[A-Za-z0-9-]{10,250}", accept_random),
    _key("hf_", "[A-Za-z]{34}"),
    _key("npm_", "[A-Za-z0-9]{36}", accept_random),
    _key("pypi-", "AgE[A-Za-z0-9_-]{50,300}"),
    _key("[rs]k_live_", "[A-Za-z0-9]{16,250}", accept_random),
    _key("sk-", "[A-Za-z0-9_-]{32,250}", accept_random),
    _key("SG[.]", "[A-Za-z0-9_-]{16,32}[.][A-Za-z0-9_-]{32,64}", accept_random),
    _key("shpat_", "[a-fA-F0-9]{32}"),
    _key("dop_v1_", "[a-f0-9]{64}"),
    _key("AGE-SECRET-KEY-1", "[A-Z0-9]{58}"),
    _key("(?:aws_secret_access_key|AWS_SECRET_ACCESS_KEY)", "[\\s'\":=]{1,8}([A-Za-z0-9/+]{40})", _last_group),
)
_PRIVATE_KEY = Search(
    SECRET,
    re.compile(
        r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----[A-Za-z0-9+/=\s:,.()\\-]{40,12000}?"
        r"-----END (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    ),
    _whole,
    reach=12_200,
)
_JWT = Search(
    SECRET,
    re.compile(r"(?<![\w-])eyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{2,4000}\.[A-Za-z0-9_-]{10,2000}(?![\w-])"),
    accept_jwt,
    reach=8_100,
)

# In the order of precedence: where two finds overlap, the kind that comes first has it.
KINDS = {
    "private_key": Kind((_PRIVATE_KEY,), "[PRIVATE_KEY]", lambda n: f"<private key {n % 10**8:08d}>"),
    "jwt": Kind((_JWT,), "[JWT]", lambda n: f"<token {n % 10**8:08d}>"),
    "api_key": Kind(_API_KEYS, "[API_KEY]", lambda n: f"<key {n % 10**8:08d}>"),
    "email": Kind(
        (Search(EMAIL, _EMAIL, accept_email),), "[EMAIL]", lambda n: f"user{n % 10**8:08d}@example.com"
    ),
    "iban": Kind((Search(IBAN, _IBAN, accept_iban),), "[IBAN]", lambda n: f"XX00 EXAMPLE {n % 10**8:08d}"),
    "card": Kind((_number(_CARD, accept_card),), "[CARD]", lambda n: f"0000 0000 0000 {n % 10**4:04d}"),
    "phone": Kind(
        (
            _number(_INTERNATIONAL, accept_telephone),
            _number(_AREA_IN_BRACKETS, accept_telephone),
            _number(_NORTH_AMERICAN, accept_telephone),
            _number(_INTRODUCED, accept_introduced_telephone),
        ),
        "[PHONE]",
        lambda n: f"555-01{n % 100:02d}",
    ),
    "ssn": Kind(
        (_number(_SSN, _whole), _number(_INTRODUCED_SSN, accept_introduced_ssn)),
        "[SSN]",
        lambda n: f"900-00-{n % 10**4:04d}",
    ),
    "ip": Kind(
        (_number(_IPV4, accept_ipv4), Search(IPV6, _IPV6, accept_ipv6)),
        "[IP]",
        lambda n: f"{('192.0.2', '198.51.100', '203.0.113')[n % 3]}.{1 + n // 3 % 254}",
    ),
}  # fmt: skip
