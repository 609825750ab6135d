import hashlib
import logging

import numpy as np
import pytest
from file_server import served

from segbench.data import transfer
from segbench.data.facts import Archive
from segbench.errors import DataError, MissingInput

CONTENT = np.random.default_rng(0).bytes(50_000)
OTHER = np.random.default_rng(1).bytes(50_000)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(transfer, "PAUSE", 0.001)
    monkeypatch.setattr(transfer, "BLOCK", 4096)


@pytest.fixture
def server():
    with served(CONTENT) as server:
        yield server


def fetched(server, folder, archive=None, told=None):
    path = transfer.fetch(archive or server.archive(), folder, lambda *step: told is not None and told.append(step))
    assert path == folder / "packed.zip"
    return path.read_bytes()


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
@pytest.mark.parametrize("size", [-1, None])
def test_a_file_comes_whole_and_leaves_nothing_else(server, tmp_path, algorithm, size):
    told = []
    assert fetched(server, tmp_path / "to", server.archive(size, algorithm), told) == CONTENT
    assert left(tmp_path / "to") == ["packed.zip"]
    assert told[-1] == ("downloading packed.zip", len(CONTENT), None if size is None else len(CONTENT))


def test_what_is_there_is_not_downloaded_again(server, tmp_path):
    fetched(server, tmp_path)
    assert fetched(server, tmp_path) == CONTENT
    assert server.asked == [""]


def test_a_cut_connection_is_continued_where_it_broke_off(server, tmp_path, caplog):
    server.cut = [20_480, 8_192]
    with caplog.at_level(logging.WARNING):
        assert fetched(server, tmp_path) == CONTENT
    assert server.asked == ["", "bytes=20480-", "bytes=28672-"]
    assert "trying again" in caplog.text


def test_a_cut_answer_without_a_length_is_continued(server, tmp_path):
    server.cut, server.length = [20_480], 0
    assert fetched(server, tmp_path) == CONTENT
    assert server.asked == ["", "bytes=20480-"]


def test_too_many_cut_connections_are_told_and_the_next_call_goes_on(server, tmp_path):
    server.cut = [20_480] + [0] * transfer.TRIES
    with pytest.raises(MissingInput, match=r"no progress in 5 tries .* 20\.5 kB are kept"):
        fetched(server, tmp_path)
    assert left(tmp_path) == ["packed.zip.part", "packed.zip.part.json"]
    asked = len(server.asked)
    assert fetched(server, tmp_path) == CONTENT
    assert server.asked[asked:] == ["bytes=20480-"]


def test_a_server_that_knows_no_ranges_sends_all_again(server, tmp_path):
    server.cut, server.ranges = [20_480], False
    assert fetched(server, tmp_path) == CONTENT
    assert server.asked == ["", "bytes=20480-"]


def test_a_server_that_knows_no_ranges_and_breaks_off_for_ever_is_given_up(server, tmp_path):
    server.cut, server.ranges = [20_480] * 20, False
    with pytest.raises(MissingInput, match="no progress"):
        fetched(server, tmp_path)
    assert len(server.asked) == transfer.TRIES + 1


@pytest.mark.parametrize("etag", ['"one"', None, 'W/"weak"'])
def test_a_file_that_changed_meanwhile_is_begun_anew(server, tmp_path, etag):
    server.content, server.etag, server.cut = OTHER, etag, [20_480] + [0] * transfer.TRIES
    published = Archive(server.url, f"sha256:{hashlib.sha256(CONTENT).hexdigest()}", len(CONTENT), "the tests")
    with pytest.raises(MissingInput):
        fetched(server, tmp_path, published)
    server.content, server.etag = CONTENT, '"two"' if etag else None
    assert fetched(server, tmp_path, published) == CONTENT


@pytest.mark.parametrize("size", [-1, None])
def test_a_beginning_longer_than_the_file_is_begun_anew(server, tmp_path, size):
    (tmp_path / "packed.zip.part").write_bytes(OTHER + OTHER)
    assert fetched(server, tmp_path, server.archive(size)) == CONTENT


def test_a_file_that_is_shorter_now_comes_in_one_request(server, tmp_path):
    server.cut, published = [20_480] + [0] * transfer.TRIES, server.archive(None)
    with pytest.raises(MissingInput):
        fetched(server, tmp_path, published)
    server.content, server.etag = OTHER[:10_000], '"two"'
    server.asked.clear()
    assert fetched(server, tmp_path, server.archive(None)) == OTHER[:10_000]
    assert server.asked == ["bytes=20480-"]


def test_a_server_that_sends_another_part_is_asked_for_all(server, tmp_path):
    server.cut, server.astray = [20_480], True
    assert fetched(server, tmp_path) == CONTENT
    assert server.asked == ["", "bytes=20480-", ""]


@pytest.mark.parametrize("size", [-1, None])
def test_wrong_bytes_are_refused_and_set_aside(server, tmp_path, size):
    published = server.archive(size)
    server.content = OTHER
    with pytest.raises(DataError, match=r"not what was published .* by the tests.*packed\.zip\.wrong"):
        fetched(server, tmp_path, published)
    assert left(tmp_path) == ["packed.zip.part.json", "packed.zip.wrong"]
    assert (tmp_path / "packed.zip.wrong").read_bytes() == OTHER
    server.content = CONTENT
    assert fetched(server, tmp_path, published) == CONTENT


def test_a_file_of_another_length_is_refused_before_it_is_downloaded(server, tmp_path):
    published = server.archive()
    server.content = b"<html>please log in</html>"
    with pytest.raises(DataError, match="has 26 bytes, but 50,000 were published"):
        fetched(server, tmp_path, published)
    assert len(server.asked) == 1


def test_a_server_that_sends_more_without_saying_so_is_stopped(server, tmp_path):
    published = server.archive()
    server.content, server.length = CONTENT * 100, 0
    with pytest.raises(DataError, match="not what was published"):
        fetched(server, tmp_path, published)
    assert (tmp_path / "packed.zip.wrong").stat().st_size < 2 * len(CONTENT)


def test_a_damaged_file_from_before_is_set_aside_and_downloaded_again(server, tmp_path, caplog):
    (tmp_path / "packed.zip").write_bytes(OTHER)
    with caplog.at_level(logging.WARNING):
        assert fetched(server, tmp_path) == CONTENT
    assert left(tmp_path) == ["packed.zip", "packed.zip.wrong"]
    assert "another checksum" in caplog.text


def test_a_length_that_is_too_large_ends_in_a_message(server, tmp_path):
    archive = server.archive(None)
    server.length = len(CONTENT) + 10
    with pytest.raises(MissingInput, match="no progress"):
        fetched(server, tmp_path, archive)


def test_a_redirect_is_followed(server, tmp_path):
    server.redirect = True
    assert fetched(server, tmp_path) == CONTENT


def test_a_refusal_is_told_at_once(server, tmp_path):
    server.statuses = [404]
    with pytest.raises(MissingInput, match=r"refuses \(404"):
        fetched(server, tmp_path)
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.statuses = [503, 429]
    assert fetched(server, tmp_path) == CONTENT


def test_a_server_that_stalls_is_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "TIMEOUT", (0.2, 0.05))
    server.pause = 0.2
    with pytest.raises(MissingInput, match="no progress"):
        fetched(server, tmp_path)


def test_a_server_that_is_not_there_is_told(server, tmp_path):
    server.port = 1
    with pytest.raises(MissingInput, match="no progress in 5 tries"):
        fetched(server, tmp_path)


def test_a_foreign_scheme_is_told(tmp_path):
    with pytest.raises(MissingInput, match="cannot be downloaded"):
        transfer.fetch(Archive("gopher://x/packed.zip", "md5:0", None, "the tests"), tmp_path, lambda *_: None)
