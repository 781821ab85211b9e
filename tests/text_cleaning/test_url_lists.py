"""Addresses are blocked as datatrove's URLFilter blocks them, by its lists and by the user's."""

from functools import cache

import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import URLFilter
from hypothesis import given, settings
from hypothesis import strategies as st
from tldextract import TLDExtract

from pipeline_lib.config.clean import CleanSettings, UrlSettings
from pipeline_lib.stage import UserError
from pipeline_lib.text_cleaning.rules import KEPT, active_rules, first_broken
from pipeline_lib.text_cleaning.url_lists import UrlLists, own_list_files

LISTS = {
    "blocked_domains": ["bad.example.com", "worse.co.uk"],
    "blocked_urls": ["https://fine.org/bad"],
    "banned_words": ["poison"],
    "soft_banned_words": ["odd", "strange"],
    "banned_subwords": ["venom"],
}
OWN = UrlSettings(datatrove_lists=False, **LISTS)
REASONS = {
    "domain": "url.domains",
    "subdomain": "url.domains",
    "url": "url.urls",
    "hard_blacklisted": "url.banned_words",
    "soft_blacklisted": "url.max_soft_banned_words",
    "blacklisted_subword": "url.banned_subwords",
}


def our_reason(url, lists):
    rules = active_rules(CleanSettings(quality_rules=["url"], url=OWN))
    rules = [rule for rule in rules if rule.name.startswith("url.")]
    (verdict,) = first_broken(lists.score([url]), rules).tolist()
    return None if verdict == KEPT else rules[verdict].name


@cache
def own_lists():
    return UrlLists(OWN)


@cache
def datatroves_filter():
    oracle = URLFilter(
        extra_domains=LISTS["blocked_domains"],
        extra_urls=LISTS["blocked_urls"],
        banned_words=LISTS["banned_words"],
        banned_subwords=LISTS["banned_subwords"],
        soft_banned_words=LISTS["soft_banned_words"],
        use_integrated_lists=False,
    )
    oracle.tldextractor = TLDExtract(suffix_list_urls=(), cache_dir=None)  # its own list, not the network's
    return oracle


hosts = st.sampled_from(["bad.example.com", "example.com", "worse.co.uk", "a.worse.co.uk", "co.uk", "fine.org"])
tails = st.sampled_from(["", "/", "/bad", "/poison/x", "/Poison", "/odd-strange", "/odd", "/antivenoms", "/v-e-n-o-m"])


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["https://", "http://"]), hosts, tails)
def test_addresses_are_blocked_for_datatroves_reason(scheme, host, tail):
    url = scheme + host + tail
    verdict = datatroves_filter().filter(Document(text="", id="", metadata={"url": url}))
    assert our_reason(url, own_lists()) == (None if verdict is True else REASONS[verdict[1]])


def test_a_listed_domain_blocks_what_lies_below_and_no_address_passes():
    lists = UrlLists(OWN)
    assert our_reason("https://user@a.bad.example.com:8080/x", lists) == "url.domains"
    assert our_reason("", lists) is None and our_reason(None, lists) is None
    assert our_reason("notbad.example.com", lists) is None


@pytest.mark.long
def test_datatroves_own_lists_are_read_from_its_package(tmp_path):
    (tmp_path / "mine.txt").write_text("# mine\nmine.example.net\n")
    lists = UrlLists(UrlSettings(domain_files=[str(tmp_path / "mine.txt")]))
    assert our_reason("https://www.mine.example.net/", lists) == "url.domains"
    assert our_reason("https://pornhub.com/", lists) == "url.domains"
    assert our_reason("https://docs.python.org/3/library/", lists) is None


@pytest.mark.parametrize("line", ["mine.example.net", "  Mine.Example.NET\t", "mine.example.net \r", "M\u00dcNZE.net"])
@pytest.mark.parametrize("before", ["", "\ufeff", "\n \r\n\t# a comment\n", "\ufeff# a comment\n"])
def test_a_list_file_is_taken_as_the_setting_with_the_same_lines(tmp_path, line, before):
    (tmp_path / "mine.txt").write_bytes(f"{before}{line}\n# \xfc\n".encode() + b"\xfc\n")
    lists = UrlLists(UrlSettings(datatrove_lists=False, domain_files=[str(tmp_path / "mine.txt")]))
    same = UrlLists(UrlSettings(datatrove_lists=False, blocked_domains=[line]))
    host = f"https://www.{line.strip()}/"
    assert our_reason(host, lists) == our_reason(host, same) == "url.domains"
    assert our_reason("https://example.net/", lists) is None


def test_a_list_file_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"domain_files: .*nowhere\.txt cannot be read"):
        UrlLists(UrlSettings(domain_files=["/nowhere.txt"]))


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.one_of(st.none(), st.text(max_size=12), st.sampled_from(["#/posts/7", "\r", "a\nb", "https://fine.org/bad"]))
    )
)
def test_whatever_stands_for_an_address_is_one_row(urls):
    columns = own_lists().score(urls)
    assert all(len(values) == len(urls) for values in columns.values())
    assert columns["blocked_url"].tolist() == [int(url == "https://fine.org/bad") for url in urls]


def test_the_users_own_lists_are_identified_by_content_where_they_are_read(tmp_path):
    (tmp_path / "mine.txt").write_text("a.org\n")
    own = UrlSettings(domain_files=[str(tmp_path / "mine.txt")])
    asked = CleanSettings(quality_rules=["url"], url=own)
    before = own_list_files(asked)
    (tmp_path / "mine.txt").write_text("b.org\n")
    assert list(before) == own.domain_files and own_list_files(asked) != before
    assert own_list_files(CleanSettings(quality_rules=["c4"], url=own)) == {}
