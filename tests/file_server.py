"""A web server on this machine that can do what servers do to a download."""

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from segbench.data.facts import Archive


@dataclass
class Server:
    """What it serves under any path, and how; tests change it between requests."""

    content: bytes
    etag: str | None = '"one"'
    ranges: bool = True  # whether a part can be asked for
    cut: list[int] = field(default_factory=list)  # after how many bytes the next answers end
    statuses: list[int] = field(default_factory=list)  # of the next answers, in place of 200
    length: int | None = None  # what it claims, if not the truth; 0: nothing
    astray: bool = False  # whether it sends another part than was asked for
    redirect: bool = False
    pause: float = 0.0  # seconds between pieces
    asked: list[str] = field(default_factory=list)  # the Range of every request, "" for none
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/sets/packed.zip"

    def archive(self, size: int | None = -1, algorithm: str = "sha256", into: str = "") -> Archive:
        """The served file as it was published."""
        sum_ = hashlib.new(algorithm, self.content).hexdigest()
        return Archive(self.url, f"{algorithm}:{sum_}", len(self.content) if size == -1 else size, "the tests", into)


@contextlib.contextmanager
def served(content: bytes) -> Iterator[Server]:
    """A server in a thread of its own, while the block runs."""
    server = Server(content)

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            _answer(server, self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    web.daemon_threads = True
    server.port = web.server_port
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        web.shutdown()
        web.server_close()
        thread.join()


def _answer(server: Server, to: BaseHTTPRequestHandler) -> None:
    to.close_connection = True
    if server.redirect and not to.path.startswith("/moved"):
        return _head(to, 302, {"Location": "/moved/elsewhere", "Content-Length": "0"})
    wanted = to.headers.get("Range", "")
    server.asked.append(wanted)
    if server.statuses:
        return _head(to, server.statuses.pop(0), {"Content-Length": "0"})
    begin, whole = 0, len(server.content)
    same = to.headers.get("If-Range") in (None, server.etag)
    if wanted and server.ranges and same:
        begin = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
        if begin >= whole:
            return _head(to, 416, {"Content-Range": f"bytes */{whole}", "Content-Length": "0"})
    begin = begin // 2 if server.astray else begin
    body = server.content[begin:]
    headers = {} if server.length == 0 else {"Content-Length": str(server.length or len(body))}
    headers |= {"ETag": server.etag} if server.etag else {}
    if begin:
        headers["Content-Range"] = f"bytes {begin}-{whole - 1}/{whole}"
    _head(to, 206 if begin else 200, headers)
    body = body[: server.cut.pop(0)] if server.cut else body
    with contextlib.suppress(ConnectionError):  # the other side has heard enough
        for at in range(0, len(body), 4096):
            time.sleep(server.pause)
            to.wfile.write(body[at : at + 4096])
    return None


def _head(to: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
    to.send_response(status)
    for name, value in headers.items():
        to.send_header(name, value)
    to.end_headers()
