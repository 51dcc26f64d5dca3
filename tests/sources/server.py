"""A small HTTP server of a folder: byte ranges, counts of requests and bytes, and every way in which servers fail.

It runs in a process of its own: GDAL may hold Python's lock while it waits for an answer.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

RANGE = re.compile(r"bytes=(\d*)-(\d*)")
REASONS = {403: "Forbidden", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error"}
CONTROL = "/__control"
FOREVER = 10**9


@dataclass
class Fault:
    """What happens to some requests."""

    pattern: str
    """Regular expression that the path of a request has to hold."""
    action: int | str
    """HTTP status, 'timeout' (no answer before `hold` seconds) or 'truncate' (half of an answer)."""
    times: int = FOREVER
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


class _Clearable(list):
    """A list whose `clear` also clears the server's."""

    def __init__(self, items, clear: Callable[[], object]) -> None:
        super().__init__(items)
        self._clear = clear

    def clear(self) -> None:
        super().clear()
        self._clear()


@dataclass(frozen=True)
class Server:
    """A running server, seen from the test."""

    url: str

    def fail(self, pattern: str, action: int | str, times: int = FOREVER, hold: float = 30.0) -> None:
        """Let requests fail from now on."""
        self._ask(fault=asdict(Fault(pattern, action, times, hold)))

    def sign(self, url: str, lifetime: float = 3600.0) -> str:
        """Return an address with a signature that expires after some seconds."""
        return f"{url.split('?')[0]}?se={time.time() + lifetime:.3f}&sig=valid"

    @property
    def requests(self) -> list[Request]:
        """Return the requests that were answered."""
        return _Clearable([Request(**one) for one in self._ask()["requests"]], lambda: self._ask(forget=["requests"]))

    @property
    def faults(self) -> list[Fault]:
        """Return what happens to requests."""
        return _Clearable([Fault(**one) for one in self._ask()["faults"]], lambda: self._ask(forget=["faults"]))

    def count(self, pattern: str = r"\.tif$") -> tuple[int, int]:
        """Return the number of requests, and of bytes served, for paths that hold a regular expression."""
        own = [one for one in self.requests if re.search(pattern, one.path)]
        return len(own), sum(one.bytes for one in own)

    def reset(self) -> None:
        """Forget requests and faults."""
        self._ask(forget=["requests", "faults"])

    def _ask(self, **order: object) -> dict[str, list[dict]]:
        request = urllib.request.Request(self.url + CONTROL, data=json.dumps(order).encode())
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


class State:
    """What the server knows."""

    def __init__(self, folder: Path, *, signed: bool) -> None:
        self.folder = folder.resolve()
        self.signed = signed
        """Whether GeoTIFFs need a signature that has not expired; STAC documents never do."""
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.lock = threading.Lock()

    def fault(self, path: str) -> Fault | None:
        """Return what happens to a request, and count it."""
        with self.lock:
            for one in self.faults:
                if one.happened < one.times and re.search(one.pattern, path):
                    one.happened += 1
                    return one
        return None

    def note(self, *request: object) -> None:
        with self.lock:
            self.requests.append(Request(*request))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: State

    def log_message(self, *args: object) -> None:
        """Be quiet."""

    def do_POST(self) -> None:
        order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        state = self.state
        with state.lock:
            for name in order.get("forget", ()):
                getattr(state, name).clear()
            if "fault" in order:
                state.faults.append(Fault(**order["fault"]))
            known = {name: [asdict(one) for one in getattr(state, name)] for name in ("requests", "faults")}
        body = json.dumps(known).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        parts = urlsplit(self.path)
        name = unquote(parts.path)
        fault = self.state.fault(name)
        if fault is not None and fault.action == "timeout":
            time.sleep(fault.hold)
            self.close_connection = True
            return
        if fault is not None and isinstance(fault.action, int):
            self.refuse(name, fault.action)
            return
        path = (self.state.folder / name.lstrip("/")).resolve()
        if not path.is_file() or not path.is_relative_to(self.state.folder):
            self.refuse(name, 404)
            return
        if self.state.signed and path.suffix == ".tif" and not self.is_signed(parse_qs(parts.query)):
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
        self.state.note(name, status, len(sent) if with_body else 0, first)
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
        self.state.note(name, status, 0)
        self.send_response(status, REASONS.get(status))
        self.send_header("Content-Length", "0")
        if status == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()


class HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is no fault of the server."""


@contextmanager
def serve(folder: Path, *, signed: bool = False) -> Iterator[Server]:
    """Give a server of a folder that runs in a process of its own until the block ends."""
    command = [sys.executable, __file__, str(folder), str(int(signed))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Server(f"http://127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.kill()


def main() -> None:
    """Serve a folder until the parent ends."""
    handler = type("Own", (Handler,), {"state": State(Path(sys.argv[1]), signed=sys.argv[2] == "1")})
    with HTTPServer(("127.0.0.1", 0), handler) as http:
        print(http.server_address[1], flush=True)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        sys.stdin.read()  # ends when the parent does


if __name__ == "__main__":
    main()
