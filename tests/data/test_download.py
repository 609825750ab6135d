import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import small_sets
from file_server import served

from segbench.data import ade20k, archive, download, transfer
from segbench.errors import DataError, MissingInput

TESTS = Path(__file__).parents[1]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "PAUSE", 0.001)
    return small_sets.publish(monkeypatch, tmp_path / "drawn")


@pytest.fixture
def server(drawn):
    with served(small_sets.packed(drawn)) as server:
        yield server


def published(*archives):
    ade20k.Params.known = known = download.Published(**{**vars(ade20k.Params.known), "archives": archives})
    return known


def whole(folder):
    root = folder / "ADEChallengeData2016"
    for split in ("train", "val"):
        ade20k.load(ade20k.Params(path=root), split)


def get(known, home, keep=False, told=None, check=whole):
    return download.get(known, home, check, keep, lambda *step: told is not None and told.append(step))


def left(home):
    return sorted(
        str(path.relative_to(home))
        for path in home.rglob("*")
        if path.is_file() and home / "ade20k" not in path.parents
    )


@pytest.mark.parametrize("keep", [False, True])
def test_a_set_comes_whole_and_its_archive_goes_unless_kept(server, drawn, tmp_path, keep):
    home, told = tmp_path / "home", []
    path = get(published(server.archive()), home, keep, told)
    assert path == home / "ade20k"
    there = {str(one.relative_to(path / "ADEChallengeData2016")) for one in path.rglob("*.*g")}
    assert there == {str(one.relative_to(drawn)) for one in drawn.rglob("*.*g")}
    assert left(home) == ["archives/.ade20k.lock", *(["archives/ade20k/packed.zip"] if keep else [])]
    assert told[-1][0] == "unpacking ade20k"
    assert told[-1][1] == told[-1][2]


def test_archives_unpack_into_their_own_folders(server, drawn, tmp_path):
    home = tmp_path / "home"
    path = get(published(server.archive(), server.archive(into="more")), home, check=lambda _: None)
    assert (path / "more/ADEChallengeData2016").is_dir()


DYING = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from segbench.data import ade20k, download
from segbench.data.facts import Archive
import dataclasses
archive = Archive(sys.argv[1], sys.argv[2], None, "the tests")
known = dataclasses.replace(ade20k.Params.known, archives=(archive,))
steps = 0
def tell(what, done, total):
    global steps
    if what.startswith(sys.argv[5]):
        steps += 1
        if steps == int(sys.argv[6]):
            os.kill(os.getpid(), signal.SIGKILL)
download.get(known, Path(sys.argv[4]), lambda _: None, False, tell)
"""


@pytest.mark.parametrize(("stage", "step"), [("downloading", 1), ("unpacking", 1), ("unpacking", 13)])
def test_a_killed_process_leaves_nothing_that_passes_for_complete_and_the_next_one_finishes(
    server, tmp_path, stage, step
):
    home, one = tmp_path / "home", server.archive()
    command = [sys.executable, "-c", DYING, one.url, one.hash, str(TESTS), str(home), stage, str(step)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (home / "ade20k").exists()
    asked = len(server.asked)
    get(published(one), home)
    assert left(home) == ["archives/.ade20k.lock"]
    assert sorted(path.name for path in home.iterdir()) == ["ade20k", "archives"]
    if stage == "unpacking":
        assert len(server.asked) == asked  # the archive was whole


@pytest.fixture
def free(monkeypatch):
    """A disk that says it has that many bytes left."""

    def leave(count):
        usage = shutil.disk_usage("/")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=count))

    return leave


def test_a_disk_without_room_is_refused_before_anything_is_downloaded(server, tmp_path, free):
    one = server.archive()
    free(2 * one.bytes - 1)  # the archive, and about as much when it is unpacked
    with pytest.raises(
        MissingInput, match=rf"\({2 * one.bytes:,} bytes\), but .* \({2 * one.bytes - 1:,} bytes\) are free"
    ):
        get(published(one), tmp_path / "home")
    assert server.asked == []
    free(2 * one.bytes)
    get(published(one), tmp_path / "home")


def test_a_disk_without_room_for_what_is_in_the_archive_is_refused_before_anything_is_unpacked(server, tmp_path, free):
    server.content = small_sets.packed_with(server.content, "ADEChallengeData2016/large.txt", bytes(200_000))
    home, one = tmp_path / "home", server.archive()
    free(2 * one.bytes)
    with pytest.raises(MissingInput, match=r"unpacking ADE20K scene parsing takes 20\d kB"):
        get(published(one), home)
    assert left(home) == ["archives/.ade20k.lock", "archives/ade20k/packed.zip"]
    free(300_000)
    get(published(one), home)
    assert server.asked == [""]


LIMITED = """
import resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.argv[1:2] = []
from segbench.errors import MissingInput
try:
    exec(sys.stdin.read())
except MissingInput as error:
    print(error)
    raise SystemExit(4)
"""


@pytest.mark.parametrize(("limit", "stage"), [(1000, "downloading"), (120_000, "unpacking")])
def test_a_disk_that_fills_up_is_told_and_the_next_call_goes_on(server, tmp_path, limit, stage):
    home, one = tmp_path / "home", server.archive()
    if stage == "unpacking":  # one member larger than all of the archive
        server.content = small_sets.packed_with(server.content, "ADEChallengeData2016/large.txt", bytes(200_000))
        one = server.archive()
        assert one.bytes < limit
    command = [sys.executable, "-c", LIMITED, str(limit), one.url, one.hash, str(TESTS), str(home), "no", "0"]
    done = subprocess.run(command, input=DYING, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert "File too large" in done.stdout
    assert "are free); make room, or name another folder with --data" in done.stdout
    assert not (home / "ade20k").exists()
    get(published(one), home)
    assert (home / "ade20k").is_dir()
    if stage == "unpacking":
        assert server.asked == [""]


def test_a_full_file_system_is_told_with_what_is_free(server, tmp_path):
    """A real one of a mebibyte, where user namespaces are allowed."""
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    home = tmp_path / "home"
    home.mkdir()
    server.content = server.content + os.urandom(1_500_000)
    one = server.archive()
    inside = [sys.executable, "-c", LIMITED, str(2**40), one.url, one.hash, str(TESTS), str(home), "no", "0"]
    mount = 'mount -t tmpfs -o size=1m none "$1" && shift && exec "$@"'
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", mount, "sh", home, *inside],
        input=DYING,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert "No space left on device" in done.stdout
    assert "are free); make room" in done.stdout


def test_archives_that_hold_something_else_are_not_taken_for_the_set(server, tmp_path):
    (home := tmp_path / "home").mkdir()
    server.content = small_sets.packed(tmp_path / "drawn", "SomethingElse")
    with pytest.raises(MissingInput):
        get(published(server.archive()), home)
    assert not (home / "ade20k").exists()


def test_an_archive_that_is_none_is_told_and_nothing_is_there(server, tmp_path):
    server.content = b"no archive"
    with pytest.raises(DataError, match="neither a zip nor a tar"):
        get(published(server.archive()), tmp_path / "home")
    assert not (tmp_path / "home/ade20k").exists()


def test_a_folder_of_the_user_is_left_alone(server, tmp_path):
    mine = tmp_path / "home/ade20k/notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(MissingInput, match="move it away"):
        get(published(server.archive()), tmp_path / "home")
    assert mine.read_text() == "mine"
    assert server.asked == []


def test_an_empty_folder_is_no_obstacle(server, tmp_path):
    (tmp_path / "home/ade20k").mkdir(parents=True)
    get(published(server.archive()), tmp_path / "home")


def test_two_at_once_do_not_meet(server, tmp_path, monkeypatch):
    home, known = tmp_path / "home", published(server.archive())
    unpack, begun, go = archive.unpack, threading.Event(), threading.Event()

    def slow(*given):
        begun.set()
        assert go.wait(20)
        unpack(*given)

    monkeypatch.setattr(archive, "unpack", slow)
    first = threading.Thread(target=get, args=(known, home))
    first.start()
    assert begun.wait(20)
    with pytest.raises(MissingInput, match="another process"):
        get(known, home)
    go.set()
    first.join()
    whole(home / "ade20k")
