"""Text, Markdown, HTML and web archives become documents; what is no document is a counted drop."""

import gzip
import io
import json
import lzma
import random
import re
import sys
import zlib
from types import SimpleNamespace

import pytest
from warcio.bufferedreaders import BufferedReader, try_brotli_init
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from pipeline_lib.sources import document_rows, warc_rows
from pipeline_lib.sources.base import Dropped
from pipeline_lib.sources.document_rows import page_row, read_html, read_text
from pipeline_lib.sources.rows import Row, Share
from pipeline_lib.sources.warc_rows import read_warc
from pipeline_lib.stage import UserError

STORY = "The lighthouse keeper counted the ships every evening and wrote their names into a long book. " * 5
PAGE = f"<html><head><title>T</title></head><body><nav>Home About</nav><article><p>{STORY}</p></article></body></html>"


def texts(found):
    return [row.record["text"] for row in found if isinstance(row, Row)]


def reasons(found):
    return [row.reason for row in found if isinstance(row, Dropped)]


def test_text_file_is_one_document_with_unix_line_ends_and_no_mark(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert texts(read_text(path, "x.txt", "", None)) == ["one\ntwo\nthree\n"]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_separator_line_splits_a_file_into_documents_with_stable_keys(tmp_path, ending):
    path = tmp_path / "x.txt"
    lines = [
        "first",
        "",
        "still first",
        "<|endoftext|>",
        "<|endoftext|>",
        "second",
        "<|endoftext|> not alone",
        "<|endoftext|>",
    ]
    path.write_bytes(ending.join(lines).encode())
    found = list(read_text(path, "x.txt", "", "<|endoftext|>"))
    assert texts(found) == ["first\n\nstill first\n", "second\n<|endoftext|> not alone\n"]
    assert [(row.key, row.where) for row in found] == [("#1", "x.txt:1"), ("#3", "x.txt:6")]


def test_file_too_long_for_one_document_asks_for_a_separator(tmp_path, monkeypatch):
    monkeypatch.setattr(document_rows, "MAX_ROW_BYTES", 100)
    path = tmp_path / "x.txt"
    path.write_text("word " * 100 + "\n###\nshort\n")
    with pytest.raises(UserError, match="set `document_separator`"):
        list(read_text(path, "x.txt", "", None))
    found = list(read_text(path, "x.txt", "", "###"))
    assert texts(found) == ["short\n"]
    assert [row.bytes for row in found if isinstance(row, Dropped)] == [501]


def test_latin1_and_binary_files_are_dropped_by_name(tmp_path):
    (tmp_path / "x.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "y.md").write_bytes(b"PK\x03\x04\x00\x00")
    [first] = read_text(tmp_path / "x.txt", "x.txt", "", None)
    [second] = read_text(tmp_path / "y.md", "y.md", "", None)
    assert (first.reason, first.where) == ("not UTF-8", "x.txt")
    assert (second.reason, second.where) == ("binary, not text", "y.md")


def test_page_gives_its_main_text_only():
    row = page_row(PAGE.encode(), "http://example.org/", "", "x.html")
    assert row.record == {"text": STORY.strip(), "url": "http://example.org/"}


@pytest.mark.parametrize("page", [b"", b"<html></html>", b"\x00\x01\x02", b"<div>" * 200_000])
def test_page_without_text_is_a_drop_not_a_crash(page):
    assert page_row(page, "", "", "x.html").reason in ("no main text", "page nested too deeply")


def test_page_larger_than_the_limit_is_not_parsed(monkeypatch):
    monkeypatch.setattr(document_rows, "MAX_PAGE_BYTES", 1000)
    assert page_row(b"x" * 1001, "", "", "x.html").reason.startswith("page longer than")


def words(text):
    return re.findall(r"\w+", text.lower())


def test_genuine_pages_give_their_article(shared_data):
    """Word recall and precision against hand-made article bodies, over the first 25 pages."""
    truth = json.loads((shared_data / "html_extraction/ground-truth.json").read_text(encoding="utf-8"))
    recalls, precisions = [], []
    for path in sorted((shared_data / "html_extraction/html").glob("*.html.gz"))[:25]:
        expected = set(words(truth[path.name.removesuffix(".html.gz")]["articleBody"]))
        got = set(words("".join(texts(read_html(path, path.name, ".gz")))))
        recalls.append(len(expected & got) / len(expected))
        precisions.append(len(expected & got) / max(1, len(got)))
    assert sum(recalls) / len(recalls) > 0.85
    assert sum(precisions) / len(precisions) > 0.85


def archive(records, gzipped=True):
    """A WARC of (record type, url, status line or None, content type, body)."""
    stream = io.BytesIO()
    writer = WARCWriter(stream, gzip=gzipped)
    for kind, url, status, content_type, body in records:
        headers = StatusAndHeaders(status, [("Content-Type", content_type)], protocol="HTTP/1.0") if status else None
        record_type = content_type if headers is None else ""
        writer.write_record(
            writer.create_warc_record(
                url, kind, payload=io.BytesIO(body), http_headers=headers, warc_content_type=record_type
            )
        )
    return stream.getvalue()


RECORDS = [
    ("request", "http://a.org/", None, "application/http", b"GET / HTTP/1.0\r\n\r\n"),
    ("response", "http://a.org/", "200 OK", "text/html; charset=utf-8", PAGE.encode()),
    ("response", "http://a.org/404", "404 Not Found", "text/html", PAGE.encode()),
    ("response", "http://a.org/i.png", "200 OK", "image/png", b"\x89PNG"),
    ("response", "http://a.org/robots.txt", "200 OK", "text/plain", b"plain words\n"),
    ("response", "http://a.org/latin", "200 OK", "text/plain", b"caf\xe9"),
    ("conversion", "http://a.org/wet", None, "text/plain", b"text of a WET file"),
]


@pytest.mark.parametrize(("name", "gzipped"), [("x.warc.gz", True), ("x.warc", False)])
def test_archive_gives_pages_and_counts_the_rest(tmp_path, name, gzipped):
    path = tmp_path / name
    path.write_bytes(archive(RECORDS, gzipped))
    found = list(read_warc(path, name, ".gz" if gzipped else ""))
    assert texts(found) == [STORY.strip(), "plain words\n", "text of a WET file"]
    assert [row.record["url"] for row in found if isinstance(row, Row)] == [
        "http://a.org/",
        "http://a.org/robots.txt",
        "http://a.org/wet",
    ]
    assert reasons(found) == ["HTTP status is not 200", "neither HTML nor plain text", "not UTF-8"]


@pytest.mark.parametrize("count", [2, 3, 7, 40])
def test_shares_of_an_archive_give_every_record_exactly_once(tmp_path, count, monkeypatch):
    monkeypatch.setattr(warc_rows, "_WINDOW", 257)
    path = tmp_path / "x.warc.gz"
    magic = b"\x1f\x8b\x08\x00" * 50  # bytes that look like the start of a member and are not
    path.write_bytes(
        archive(
            [("conversion", f"http://a.org/{n}", None, "text/plain", b"%d " % n * (n * 37 % 90)) for n in range(60)]
        )
    )
    assert warc_rows.next_member(io.BytesIO(magic + path.read_bytes()), 1, 10**6) == len(magic)
    whole = list(read_warc(path, "x.warc.gz", ".gz"))
    parts = [row for index in range(count) for row in read_warc(path, "x.warc.gz", ".gz", Share(index, count))]
    assert len(whole) == 60
    assert parts == whole


def one_record(path, kind, url, content_type, body, http=(), **warc):
    """Write an archive of one record with these headers of HTTP and WARC; return its rows."""
    stream = io.BytesIO()
    answer = StatusAndHeaders("200 OK", [("Content-Type", content_type), *http], protocol="HTTP/1.1")
    headers = {name.replace("_", "-"): value for name, value in warc.items()}
    own = {"http_headers": answer} if kind == "response" else {"warc_content_type": content_type}
    writer = WARCWriter(stream, gzip=True)
    writer.write_record(
        writer.create_warc_record(url, kind, payload=io.BytesIO(body), warc_headers_dict=headers, **own)
    )
    path.write_bytes(stream.getvalue())
    return list(read_warc(path, path.name, ".gz"))


def test_a_resource_is_a_page_by_its_own_type_and_the_crawlers_notes_are_none(tmp_path):
    def resource(url, content_type, body):
        return one_record(tmp_path / "x.warc.gz", "resource", url, content_type, body)

    assert texts(resource("http://a.org/", "text/html; charset=utf-8", PAGE.encode())) == [STORY.strip()]
    assert texts(resource("ftp://a.org/README", "text/plain", b"plain words")) == ["plain words"]
    assert reasons(resource("https://a.org/i.png", "image/png", b"\x89PNG")) == ["neither HTML nor plain text"]
    assert resource("metadata://gnu.org/software/wget/warc/wget.log", "text/plain", b"a log") == []


@pytest.mark.parametrize("content_type", ["text/html", "text/plain"])
@pytest.mark.parametrize(
    ("said", "named"),
    [("br", "br"), ("zstd", "zstd"), ("X-Compress", "compress"), ("gzip, br", "gzip, br"), ("BR,UTF-8 ,br", "br")],
)
def test_a_page_whose_encoding_cannot_be_undone_is_a_drop_that_names_it(
    tmp_path, monkeypatch, said, named, content_type
):
    monkeypatch.delitem(BufferedReader.DECOMPRESSORS, "br", raising=False)  # as without the package brotli
    http = [("Content-Encoding", said)]
    body = b"\x0bthese bytes stand for compressed ones"
    found = one_record(tmp_path / "x.warc.gz", "response", "http://a.org/", content_type, body, http)
    assert reasons(found) == [f"content encoding {named} is not supported"] and len(found) == 1
    assert found[0].bytes == len(body)


@pytest.mark.parametrize("said", ["UTF-8", "none", "aws-chunked", "Identity", "deflate_alt", "a word of my own " * 9])
def test_a_word_that_is_no_encoding_leaves_the_page_as_it_is(tmp_path, said):
    def rows_of(content_type, body):
        http = [("Content-Encoding", said)]
        return one_record(tmp_path / "x.warc.gz", "response", "http://a.org/", content_type, body, http)

    assert texts(rows_of("text/html", PAGE.encode())) == [STORY.strip()]
    assert texts(rows_of("text/plain", b"plain words")) == ["plain words"]


@pytest.mark.parametrize("said", ["x-gzip", "X-GZIP", "aws-chunked, gzip", "gzip,gzip"])
def test_gzip_is_undone_under_its_old_name_and_beside_words_that_say_nothing(tmp_path, said):
    def rows_of(body):
        http = [("Content-Encoding", said)]
        return one_record(tmp_path / "x.warc.gz", "response", "http://a.org/", "text/plain", body, http)

    assert texts(rows_of(gzip.compress(b"plain words"))) == ["plain words"]
    for bad in (gzip.compress(STORY.encode())[:-9], gzip.compress(gzip.compress(b"twice"))):
        assert reasons(rows_of(bad)) == ["content encoding gzip is broken"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_page_whose_gzip_encoding_breaks_is_a_drop_and_a_whole_one_a_document(tmp_path, chunked):
    def rows_of(body, encoding="gzip"):
        http = [("Content-Encoding", encoding)] + [("Transfer-Encoding", "chunked")] * chunked
        if chunked:
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        return one_record(tmp_path / "x.warc.gz", "response", "http://a.org/", "text/html", body, http)

    paragraphs = "".join(f"<p>{STORY} {random.Random(n).randbytes(200).hex()}</p>" for n in range(400))
    whole = gzip.compress(f"<html><body><article>{paragraphs}</article></body></html>".encode())
    assert len(texts(rows_of(whole))) == 1
    assert texts(rows_of(PAGE.encode())) == texts(rows_of(PAGE.encode(), "identity")) == [STORY.strip()]
    assert len(whole) > 3 * 16384, "more than what warcio decompresses at once"
    broken = bytearray(whole)
    broken[40_000:40_100] = bytes(100)
    in_front = bytearray(whole)
    in_front[100:200] = bytes(100)
    for bad in (whole[:-9], whole[: len(whole) // 2], bytes(broken), bytes(in_front)):
        assert reasons(rows_of(bad)) == ["content encoding gzip is broken"]


class StandInForBrotli:
    """What `brotli.Decompressor` has, and nothing that it does not take, around the deflate of zlib."""

    __slots__ = ("_inner", "_failed")

    def __init__(self):
        self._inner, self._failed = zlib.decompressobj(wbits=-15), False

    def process(self, data):
        if self._failed:
            raise ValueError("brotli: decoder is unhealthy")
        try:
            return self._inner.decompress(data)
        except zlib.error:
            self._failed = True
            raise

    def is_finished(self):
        if self._failed:
            raise ValueError("brotli: decoder is unhealthy")
        return self._inner.eof


@pytest.mark.parametrize("genuine", [False, True])
def test_a_page_whose_br_encoding_breaks_is_a_drop_and_a_whole_one_a_document(tmp_path, monkeypatch, genuine):
    if genuine:
        compress = pytest.importorskip("brotli").compress
    else:
        monkeypatch.setitem(sys.modules, "brotli", SimpleNamespace(Decompressor=StandInForBrotli))
        monkeypatch.setitem(BufferedReader.DECOMPRESSORS, "br", None)
        try_brotli_init()  # warcio finds brotli, as when it is imported

        def compress(data):
            return zlib.compress(data, wbits=-15)

    def rows_of(body):
        http = [("Content-Encoding", "br")]
        return one_record(tmp_path / "x.warc.gz", "response", "http://a.org/", "text/html", body, http)

    paragraphs = "".join(f"<p>{STORY} {random.Random(n).randbytes(200).hex()}</p>" for n in range(400))
    whole = compress(f"<html><body><article>{paragraphs}</article></body></html>".encode())
    assert len(whole) > 3 * 16384, "more than what warcio decompresses at once"
    assert len(texts(rows_of(whole))[0]) > 400 * len(STORY)
    assert texts(rows_of(PAGE.encode())) == texts(rows_of(compress(PAGE.encode()))) == [STORY.strip()]
    broken, in_front = bytearray(whole), bytearray(whole)
    broken[40_000:40_100] = in_front[100:200] = bytes(100)
    for bad in (whole[:-9], whole[: len(whole) // 2], bytes(broken), bytes(in_front)):
        assert reasons(rows_of(bad)) == ["content encoding br is broken"]


@pytest.mark.parametrize(("said", "named"), [("length", "length"), ("Time", "time"), ("my own word", "unspecified")])
def test_a_page_that_the_crawler_cut_is_a_drop_with_its_reason(tmp_path, said, named):
    for kind, content_type in (("response", "text/html"), ("resource", "text/html"), ("conversion", "text/plain")):
        path, url = tmp_path / "x.warc.gz", "http://a.org/"
        found = one_record(path, kind, url, content_type, PAGE.encode(), WARC_Truncated=said)
        assert [row.reason for row in found] == [f"cut by the crawler ({named})"]


def documents_or_damage(path, data):
    """How many documents the archive gives; None when it is refused in words that say where the damage is."""
    path.write_bytes(data)
    try:
        return len(texts(read_warc(path, path.name, ".gz" if path.suffix == ".gz" else "")))
    except UserError as error:
        assert re.search(r"is damaged: .*byte \d", str(error)), error
        return None


@pytest.mark.parametrize(("name", "gzipped"), [("x.warc.gz", True), ("x.warc", False)])
def test_archive_cut_anywhere_but_between_records_is_damaged(tmp_path, name, gzipped):
    parts = [archive([record], gzipped) for record in (RECORDS[0], RECORDS[4], RECORDS[-1])]
    whole = {0: 0}  # size: documents
    for count in (1, 2, 3):
        for missing in range(1 if gzipped else 5):  # the two empty lines after a record
            whole[sum(map(len, parts[:count])) - missing] = count - 1
    data = b"".join(parts)
    for size in range(len(data) + 1):
        assert documents_or_damage(tmp_path / name, data[:size]) == whole.get(size), size


def test_archive_with_a_broken_byte_never_loses_the_records_after_it_in_silence(tmp_path):
    parts = [archive([record]) for record in (RECORDS[4], RECORDS[-1], RECORDS[4])]
    data, start = b"".join(parts), len(parts[0])
    for place in range(start, start + len(parts[1])):
        broken = bytearray(data)
        broken[place] ^= 0xFF
        found = documents_or_damage(tmp_path / "x.warc.gz", bytes(broken))
        unused = 4 <= place - start < 10  # of gzip's header: date, hints, system
        assert found == (3 if unused else None), place


def test_record_that_claims_more_bytes_than_its_member_has_is_one_drop(tmp_path):
    lying = re.sub(rb"Content-Length: 18", b"Content-Length: 99", archive(RECORDS[-1:], gzipped=False))
    path = tmp_path / "x.warc.gz"
    path.write_bytes(gzip.compress(lying) + archive(RECORDS[-1:]))
    found = list(read_warc(path, path.name, ".gz"))
    assert texts(found) == ["text of a WET file"] and reasons(found) == ["archive record cut short"]


def test_archive_inside_xz_is_read_like_the_plain_one(tmp_path):
    plain, packed = tmp_path / "x.warc", tmp_path / "x.warc.xz"
    plain.write_bytes(archive(RECORDS, gzipped=False))
    packed.write_bytes(lzma.compress(plain.read_bytes()))
    found = list(read_warc(packed, "x.warc", ".xz"))
    assert len(found) == 6 and found == list(read_warc(plain, "x.warc", ""))


def test_archive_compressed_as_one_stream_says_how_to_repair_it(tmp_path):
    path = tmp_path / "x.warc.gz"
    path.write_bytes(gzip.compress(archive(RECORDS, gzipped=False)))
    with pytest.raises(UserError, match=r"after the record at byte \d+: .*warcio recompress"):
        list(read_warc(path, "x.warc.gz", ".gz"))


def test_genuine_crawl_gives_one_row_per_response(shared_data):
    path = shared_data / "warc/dolma_sample-0000.warc.gz"
    found = list(read_warc(path, "dolma.warc.gz", ".gz"))
    assert len(found) == gzip.decompress(path.read_bytes()).count(b"WARC-Type: response")
    assert len(texts(found)) >= 20
    assert set(reasons(found)) <= {"no main text"}
    assert all(row.record["url"].startswith("https://") for row in found if isinstance(row, Row))
    shares = [row for index in range(5) for row in read_warc(path, "dolma.warc.gz", ".gz", Share(index, 5))]
    assert shares == found


@pytest.mark.parametrize(
    ("name", "documents"),
    [
        ("warcio_example.arc.gz", 1),
        ("warcio_example.warc.gz", 1),
        ("warcio_example-resource.warc.gz", 1),
        ("warcio_post-test.warc.gz", 0),
    ],
)
def test_genuine_small_archives(shared_data, name, documents):
    assert len(texts(read_warc(shared_data / f"warc/{name}", name, ".gz"))) == documents


def test_genuine_archive_with_a_false_length_is_reported(shared_data):
    with pytest.raises(UserError, match="is damaged"):
        list(read_warc(shared_data / "warc/warcio_example-wrong-chunks.warc.gz", "wrong.warc.gz", ".gz"))
