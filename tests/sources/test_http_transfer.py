"""A download ends with the right bytes or an error, whatever the server does."""

import hashlib
import random
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import pytest

from pipeline_lib.sources import transfer
from pipeline_lib.sources.base import Workbench
from pipeline_lib.sources.patience import retry_after
from pipeline_lib.sources.transfer import Expected, RangedFile, RangeIgnored, Transfer
from pipeline_lib.stage import StageFailure, UserError

DATA = random.Random(1).randbytes(300_000)
PATH = "/files/data.bin"


@pytest.fixture
def world(server, bench, quick, tmp_path):
    """A served file, a transfer and the target path."""
    entry = server.put(PATH, DATA)
    settings = quick(type="http", urls=[entry], attempts=3)
    return SimpleNamespace(
        server=server,
        url=entry["url"],
        target=tmp_path / "downloads" / "data.bin",
        right=Expected("sha256", entry["sha256"]),
        transfer=Transfer(settings, bench),
        settings=settings,
    )


def fetch(world, expected=None):
    return world.transfer.fetch(world.url, world.target, expected or world.right)


def test_whole_file_arrives_and_nothing_is_left_beside_it(world):
    assert fetch(world).read_bytes() == DATA
    assert [file.name for file in world.target.parent.iterdir()] == ["data.bin"]


def test_file_already_verified_is_not_asked_for_again(world):
    fetch(world)
    fetch(world)
    assert len(world.server.requests) == 1


def test_dropped_connections_continue_where_they_broke_off(world):
    world.server.misbehave(PATH, "drop", after=100_000)
    world.server.misbehave(PATH, "drop", after=50_000)
    assert fetch(world).read_bytes() == DATA
    assert world.server.ranges_asked(PATH) == [None, "bytes=100000-", "bytes=150000-"]
    assert world.server.sent[PATH] == len(DATA)


def test_more_drops_than_attempts_succeed_as_long_as_bytes_arrive(world):
    world.server.misbehave(PATH, "drop", after=20_000, times=10)
    assert fetch(world).read_bytes() == DATA


def test_drops_without_progress_give_up_after_the_attempts_and_keep_what_came(world):
    world.server.misbehave(PATH, "drop", after=1000)
    world.server.misbehave(PATH, "drop", times=2)
    with pytest.raises(StageFailure, match="gave up after 3 attempts"):
        fetch(world)
    assert len(world.server.requests) == 3
    assert not world.target.exists()
    assert fetch(world).read_bytes() == DATA, "the next start continues"
    assert world.server.ranges_asked(PATH)[-1] == "bytes=1000-"


def test_partial_file_of_a_killed_process_is_continued(world):
    world.target.parent.mkdir(parents=True)
    world.target.with_name("data.bin.partial").write_bytes(DATA[:123_456])
    assert fetch(world).read_bytes() == DATA
    assert world.server.ranges_asked(PATH) == ["bytes=123456-"]


def test_partial_file_that_is_already_whole_is_accepted(world):
    world.target.parent.mkdir(parents=True)
    world.target.with_name("data.bin.partial").write_bytes(DATA)
    assert fetch(world).read_bytes() == DATA


def test_partial_file_longer_than_the_file_starts_anew(world):
    world.target.parent.mkdir(parents=True)
    world.target.with_name("data.bin.partial").write_bytes(DATA + b"more")
    assert fetch(world).read_bytes() == DATA


def test_partial_file_of_another_version_is_thrown_away_once_the_digest_shows_it(world):
    world.target.parent.mkdir(parents=True)
    world.target.with_name("data.bin.partial").write_bytes(b"x" * 1000)
    assert fetch(world).read_bytes() == DATA
    assert world.server.ranges_asked(PATH) == ["bytes=1000-", None]


def test_server_that_ignores_range_sends_the_file_anew(world):
    world.server.ignores_range = True
    world.server.misbehave(PATH, "drop", after=100_000)
    assert fetch(world).read_bytes() == DATA


def test_server_that_ignores_range_and_always_drops_at_one_place_is_given_up(world):
    world.server.ignores_range = True
    world.server.misbehave(PATH, "drop", after=100_000, times=50)
    with pytest.raises(StageFailure, match="gave up after 3 attempts"):
        fetch(world)
    assert len(world.server.requests) <= 5


def test_body_cut_with_a_corrected_length_is_found_by_the_digest(world):
    world.server.misbehave(PATH, "lie", after=200_000)
    assert fetch(world).read_bytes() == DATA


def test_body_without_length_that_ends_early_is_continued_when_the_size_is_known(world):
    world.server.misbehave(PATH, "endless", after=200_000)
    expected = Expected("sha256", world.right.digest, len(DATA))
    assert fetch(world, expected).read_bytes() == DATA
    assert world.server.ranges_asked(PATH) == [None, "bytes=200000-"]


def test_body_without_length_that_ends_early_is_found_by_the_digest_when_not(world):
    world.server.misbehave(PATH, "endless", after=200_000)
    assert fetch(world).read_bytes() == DATA


def test_wrong_bytes_once_are_fetched_anew(world, said):
    world.server.misbehave(PATH, "wrong")
    assert fetch(world).read_bytes() == DATA
    assert any("wrong bytes" in line for line in said)


def test_wrong_bytes_twice_fail_with_both_digests_and_leave_no_file(world):
    world.server.misbehave(PATH, "wrong")
    world.server.misbehave(PATH, "wrong")
    with pytest.raises(StageFailure, match=f"not {world.right.digest}"):
        fetch(world)
    assert list(world.target.parent.iterdir()) == []


def test_a_file_of_no_bytes_is_a_file(world):
    empty = Expected("sha256", hashlib.sha256(b"").hexdigest(), 0)
    assert fetch(world, empty).read_bytes() == b""


def test_hub_blob_digest_is_the_one_git_computes(world):
    blob = hashlib.sha1(b"blob %d\x00" % len(DATA) + DATA).hexdigest()
    assert fetch(world, Expected("git-sha1", blob, len(DATA))).read_bytes() == DATA
    assert "git-sha1" in Expected("git-sha1", "0" * 40).problem(world.target)


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_obeyed(server, bench, quick, tmp_path, status):
    entry = server.put(PATH, DATA)
    server.misbehave(PATH, "status", status=status, headers={"Retry-After": "1"})
    transfer = Transfer(quick(type="http", urls=[entry], longest_wait_seconds=2.0), bench)
    transfer.fetch(entry["url"], tmp_path / "data.bin", Expected("sha256", entry["sha256"]))
    first, second = (moment for _, _, moment in server.requests)
    assert 1.0 <= second - first < 2.0


def test_retry_after_beyond_the_longest_wait_fails_at_once(world):
    world.server.misbehave(PATH, "status", status=429, headers={"Retry-After": "3600"})
    with pytest.raises(StageFailure, match="asks to wait 3600 s"):
        fetch(world)
    assert len(world.server.requests) == 1


def test_retry_after_reads_seconds_and_dates():
    soon = datetime.now(UTC) + timedelta(seconds=30)
    assert retry_after("7") == 7
    assert 28 <= retry_after(format_datetime(soon, usegmt=True)) <= 30
    assert retry_after(format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)) == 0
    assert retry_after("soon") is None
    assert retry_after(None) is None


def test_waits_double_up_to_the_longest(world, said):
    world.server.misbehave(PATH, "status", status=500, times=2)
    assert fetch(world).read_bytes() == DATA
    assert len(said) == 2
    assert all("status 500" in line for line in said)


@pytest.mark.parametrize(("status", "words"), [(404, "correct the address"), (403, "access refused")])
def test_a_refusal_is_the_users_to_mend_and_is_not_repeated(world, status, words):
    world.server.misbehave(PATH, "status", status=status)
    with pytest.raises(UserError, match=words):
        fetch(world)
    assert len(world.server.requests) == 1


def test_silent_server_is_given_up_after_the_timeout(server, bench, quick, tmp_path):
    entry = server.put(PATH, DATA)
    server.misbehave(PATH, "silent", after=3)
    transfer = Transfer(quick(type="http", urls=[entry], timeout_seconds=0.3), bench)
    began = time.monotonic()
    transfer.fetch(entry["url"], tmp_path / "data.bin", Expected("sha256", entry["sha256"]))
    assert time.monotonic() - began < 20  # and not the 60 s that a silent server is given by default


def test_nobody_listening_is_a_failure_after_the_attempts(quick, bench, tmp_path):
    url = "http://127.0.0.1:9/data.jsonl"
    settings = quick(type="http", urls=[{"url": url, "sha256": "0" * 64}], attempts=2)
    with pytest.raises(StageFailure, match="gave up after 2 attempts"):
        Transfer(settings, bench).fetch(url, tmp_path / "data", Expected("sha256", "0" * 64))


def test_redirects_are_followed_with_the_range(world):
    world.server.redirects["/moved"] = world.url
    world.server.misbehave(PATH, "drop", after=100_000)
    moved = world.url.replace(PATH, "/moved")
    assert world.transfer.fetch(moved, world.target, world.right).read_bytes() == DATA
    assert world.server.ranges_asked(PATH) == [None, "bytes=100000-"]


def test_a_request_to_stop_is_heard_in_the_middle_of_a_transfer_and_keeps_what_came(world, tmp_path):
    class Stop(BaseException):
        pass

    blocks = []

    def pause():
        blocks.append(1)
        if len(blocks) == 2:
            raise Stop

    transfer = Transfer(world.settings, Workbench(tmp_path, pause=pause))
    with pytest.raises(Stop):
        transfer.fetch(world.url, world.target, world.right)
    kept = world.target.with_name("data.bin.partial").read_bytes()
    assert kept
    assert DATA.startswith(kept)
    assert fetch(world).read_bytes() == DATA


def test_a_request_to_stop_is_heard_during_a_wait(world, tmp_path):
    class Stop(BaseException):
        pass

    def pause():
        raise Stop

    world.server.misbehave(PATH, "status", status=503, headers={"Retry-After": "60"})
    settings = world.settings.model_copy(update={"longest_wait_seconds": 100.0})
    began = time.monotonic()
    with pytest.raises(Stop):
        Transfer(settings, Workbench(tmp_path, print, pause)).fetch(world.url, world.target, world.right)
    assert time.monotonic() - began < 30  # the server asked for 60


def test_ranges_survive_drops(world):
    world.server.misbehave(PATH, "drop", after=1000)
    world.server.misbehave(PATH, "status", status=429)
    world.server.misbehave(PATH, "drop", after=70)
    assert world.transfer.read_range(world.url, 5000, 90_000) == DATA[5000:90_000]


def test_remote_file_reads_like_the_file(world, monkeypatch):
    monkeypatch.setattr(transfer, "READ_AHEAD_BYTES", 7000)
    remote = RangedFile(world.transfer, world.url, len(DATA))
    draw = random.Random(2)
    for _ in range(20):
        offset, length = draw.randrange(len(DATA) + 10), draw.randrange(5000)
        remote.seek(offset)
        assert remote.read(length) == DATA[offset : offset + length]
    remote.seek(-100, 2)
    assert remote.read() == DATA[-100:]


def test_remote_file_reads_ahead_so_that_neighbouring_reads_are_one_request(world):
    remote = RangedFile(world.transfer, world.url, len(DATA))
    assert b"".join(remote.read(1000) for _ in range(300)) == DATA
    assert len(world.server.requests) == 1


def test_server_without_ranges_is_recognised(world):
    assert world.transfer.serves_ranges(world.url, len(DATA))
    world.server.ignores_range = True
    assert not world.transfer.serves_ranges(world.url, len(DATA))
    with pytest.raises(RangeIgnored):
        world.transfer.read_range(world.url, 0, 10)
