"""One file over HTTP: continued where it broke off, and accepted only by its published checksum.

FILE.part    what has come so far
FILE         whole, its checksum right
FILE.wrong   not what was published, kept to look at
"""

import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from segbench.data.facts import Archive
from segbench.errors import DataError, MissingInput
from segbench.files import said_bytes, write_whole, writing

if TYPE_CHECKING:
    from requests import Response

TRIES = 5  # without a byte more than before
PAUSE = 2.0  # seconds before the second try; doubled before every further one
TIMEOUT = (15, 60)  # seconds to connect, and between two pieces
BLOCK = 2**16  # bytes written at a time, and lost when a connection is cut
AGAIN = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses that may pass

Tell = Callable[[str, int, int | None], object]  # what is done, bytes so far, bytes in all where known

_log = logging.getLogger(__name__)


def fetch(one: Archive, folder: Path, tell: Tell) -> Path:
    """The archive in a folder, downloaded or continued where it is not there whole.

    MissingInput where the server, the connection or the disk end it; the same call goes on from there. DataError for a
    file that is not the published one.
    """
    from pooch.hashes import file_hash, hash_matches  # pooch.retrieve deletes what can be continued or looked at

    path = place(one, folder)
    part = _beside(path, "part")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            if hash_matches(path, one.hash):
                return path
            _log.warning("%s: has another checksum than was published; kept as %s", path, _set_aside(path))
        continued = _length(part) > 0
        _download(one, part, tell)
        if continued and not hash_matches(part, one.hash):
            _log.warning("%s: the beginning that was there does not fit; downloading all of it", path.name)
            _discard(part)
            _download(one, part, tell)
        if not hash_matches(part, one.hash):
            raise DataError(
                f"{one.url}: what came is not what was published (expected {one.hash} by {one.source}, found"
                f" {file_hash(part, one.hash.partition(':')[0])}, {_length(part):,} bytes); kept as"
                f" {_set_aside(part.replace(path))}, nothing of it is unpacked"
            )
        part.replace(path)
        _discard(part)
    return path


def place(one: Archive, folder: Path) -> Path:
    """Where the archive lies when it is whole."""
    return folder / PurePosixPath(unquote(urlsplit(one.url).path)).name


def there(one: Archive, folder: Path) -> int:
    """Bytes of it that need not be downloaded any more."""
    path = place(one, folder)
    return _length(path) or _length(_beside(path, "part"))


class _StartOver(Exception):
    """What is there cannot be continued: the server's file is another one by now."""


class _TooMuch(Exception):
    """More bytes than were published."""


@dataclass(frozen=True)
class _Sink:
    """A file that tells how much is in it, and takes no more than was published."""

    file: IO[bytes]
    one: Archive
    tell: Tell

    def write(self, block: bytes) -> None:
        self.file.write(block)
        done = self.file.tell()
        if self.one.bytes is not None and done > self.one.bytes:
            raise _TooMuch
        self.tell(f"downloading {place(self.one, Path()).name}", done, self.one.bytes)

    def flush(self) -> None:
        self.file.flush()


def _download(one: Archive, part: Path, tell: Tell) -> None:
    """Ask until nothing more comes; MissingInput when the server refuses, or when asking again and again is no use."""
    import requests

    tries, most = 0, _length(part)
    while one.bytes is None or _length(part) < one.bytes:
        try:
            _transfer(one, part, tell)
            if one.bytes is None:
                return
            why: object = f"only {_length(part):,} of {one.bytes:,} bytes came"
        except _TooMuch:
            return
        except _StartOver as over:
            _discard(part)
            why = over
        except requests.HTTPError as error:
            if error.response is None or error.response.status_code not in AGAIN:
                raise MissingInput(f"{one.url}: the server refuses ({error})") from error
            why = error
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            why = error
        except (requests.RequestException, ValueError) as error:
            raise MissingInput(f"{one.url}: cannot be downloaded ({error})") from error
        there = _length(part)
        tries, most = (0, there) if there > most else (tries + 1, most)
        if one.bytes is None or there < one.bytes:
            if tries >= TRIES:
                raise MissingInput(
                    f"{one.url}: no progress in {tries} tries ({why}); {said_bytes(there)} are kept, and the same"
                    " command goes on from there"
                )
            _log.warning("%s: broke off at %s, trying again (%s)", part.stem, said_bytes(there), why)
            time.sleep(PAUSE * 2**tries)


def _transfer(one: Archive, part: Path, tell: Tell) -> None:
    """One request: for the rest if the server still has the file that was begun, for all of it otherwise."""
    import pooch

    begun, validator = _length(part), _validator(part, one.url)
    wanted = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={begun}-"} if begun else {})
    if begun and validator:
        wanted["If-Range"] = validator
    part.touch()
    with part.open("r+b") as file:
        file.seek(begun)

        def answered(response: "Response", **_: object) -> None:
            if response.is_redirect:
                return
            if response.status_code == 416 or (response.status_code == 206 and not _continues(response, begun, one)):
                response.close()
                raise _StartOver("the server has another file by now")
            length = response.headers.get("Content-Length", "")
            if response.status_code == 200 and one.bytes is not None and length not in ("", str(one.bytes)):
                response.close()
                raise DataError(
                    f"{one.url}: the server's file has {length} bytes, but {one.bytes:,} were published; it is another"
                    " file, perhaps a page that says why"
                )
            if response.status_code == 200:
                file.seek(0)
                file.truncate()
            if response.ok:
                write_whole(_beside(part, "json"), json.dumps([one.url, _mark(response)]).encode())

        over_http = pooch.HTTPDownloader(
            chunk_size=BLOCK, headers=wanted, hooks={"response": answered}, timeout=TIMEOUT
        )
        over_http(one.url, _Sink(file, one, tell), None)


def _continues(response: "Response", begun: int, one: Archive) -> bool:
    """Whether a partial answer begins where it must, in a file as long as the published one."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    return found is not None and int(found[1]) == begun and (one.bytes is None or found[2] in ("*", str(one.bytes)))


def _mark(response: "Response") -> str | None:
    """What tells this file of the server from a later one by the same name; weak tags do not (RFC 9110, 13.1.5)."""
    tag = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _validator(part: Path, url: str) -> str | None:
    try:
        of, mark = json.loads(_beside(part, "json").read_bytes())
    except (OSError, ValueError, TypeError):
        return None
    return mark if of == url and isinstance(mark, str) else None


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def _set_aside(path: Path) -> Path:
    return path.replace(_beside(path, "wrong"))


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _beside(part, "json").unlink(missing_ok=True)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
