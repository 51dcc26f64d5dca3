"""A small HTTP server of a folder: byte ranges, counts of requests and bytes, and every way in which servers fail."""

from __future__ import annotations

import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

RANGE = re.compile(r"bytes=(\d*)-(\d*)")
REASONS = {403: "Forbidden", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error"}


@dataclass
class Fault:
    """What happens to some requests."""

    pattern: str
    """Regular expression that the path of a request has to hold."""
    action: int | str
    """HTTP status, 'timeout' (no answer before `hold` seconds) or 'truncate' (half of an answer)."""
    times: int = 10**9
    """Number of requests that it happens to."""
    hold: float = 30.0
    happened: int = 0


@dataclass(frozen=True)
class Request:
    """A request that was answered."""

    path: str
    status: int
    bytes: int
    """Bytes of the body."""
    start: int = 0
    """First byte of the file that was asked for."""


@dataclass
class Server:
    """A running server."""

    folder: Path
    port: int = 0
    signed: bool = False
    """Whether files need a signature that has not expired; STAC documents never do."""
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fail(self, pattern: str, action: int | str, times: int = 10**9, hold: float = 30.0) -> Fault:
        """Let requests fail from now on."""
        fault = Fault(pattern, action, times, hold)
        self.faults.append(fault)
        return fault

    def sign(self, url: str, lifetime: float = 3600.0) -> str:
        """Return an address with a signature that expires after some seconds."""
        return f"{url.split('?')[0]}?se={time.time() + lifetime:.3f}&sig=valid"

    def count(self, pattern: str = r"\.tif$") -> tuple[int, int]:
        """Return the number of requests, and of bytes served, for paths that hold a regular expression."""
        with self.lock:
            own = [one for one in self.requests if re.search(pattern, one.path)]
        return len(own), sum(one.bytes for one in own)

    def reset(self) -> None:
        """Forget requests and faults."""
        with self.lock:
            self.requests.clear()
            self.faults.clear()

    def fault(self, path: str) -> Fault | None:
        """Return what happens to a request, and count it."""
        with self.lock:
            for one in self.faults:
                if one.happened < one.times and re.search(one.pattern, path):
                    one.happened += 1
                    return one
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HTTPServer

    def log_message(self, *args: object) -> None:
        """Be quiet."""

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        state = self.server.state
        parts = urlsplit(self.path)
        name = unquote(parts.path)
        fault = state.fault(name)
        if fault is not None and fault.action == "timeout":
            state.closing.wait(fault.hold)
            self.close_connection = True
            return
        if fault is not None and isinstance(fault.action, int):
            self.refuse(name, fault.action)
            return
        path = (state.folder / name.lstrip("/")).resolve()
        if not path.is_file() or not path.is_relative_to(state.folder.resolve()):
            self.refuse(name, 404)
            return
        if state.signed and path.suffix == ".tif" and not self.is_signed(parse_qs(parts.query)):
            self.refuse(name, 403)
            return
        size = path.stat().st_size
        asked = RANGE.fullmatch(self.headers.get("Range", ""))
        first, last = 0, size - 1
        if asked is not None and asked[1]:
            first, last = int(asked[1]), min(int(asked[2] or last), last)
        elif asked is not None and asked[2]:
            first = max(0, size - int(asked[2]))
        if first > last:
            self.refuse(name, 416)
            return
        with open(path, "rb") as file:
            file.seek(first)
            body = file.read(last - first + 1)
        sent = body[: len(body) // 2] if fault is not None else body
        status = 206 if asked is not None else 200
        with state.lock:
            state.requests.append(Request(name, status, len(sent) if with_body else 0, first))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        if asked is not None:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        if with_body:
            self.wfile.write(sent)
        if fault is not None:
            self.close_connection = True

    def is_signed(self, query: dict[str, list[str]]) -> bool:
        return query.get("sig") == ["valid"] and float(query.get("se", ["0"])[0]) > time.time()

    def refuse(self, name: str, status: int) -> None:
        with self.server.state.lock:
            self.server.state.requests.append(Request(name, status, 0))
        self.send_response(status, REASONS.get(status))
        self.send_header("Content-Length", "0")
        if status == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()


class HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    state: Server

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is no fault of the server."""


@contextmanager
def serve(folder: Path, *, signed: bool = False):
    """Give a server of a folder that runs in a thread until the block ends."""
    state = Server(folder, signed=signed)
    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        http.state, state.port = state, http.server_address[1]
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            state.closing.set()
            http.shutdown()
            thread.join()
