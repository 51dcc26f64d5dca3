"""Servers on this machine: one that sends parts of files, one that does not, and the hub's interface to a data set."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Plain(SimpleHTTPRequestHandler):
    """Python's own server, which sends whole files; counts the bytes of files."""

    def log_message(self, *_):
        pass


class Parts(Plain):
    """Sends parts of files where they are asked for."""

    def do_GET(self):
        path, asked = Path(self.translate_path(self.path)), self.headers.get("Range")
        if not asked or not path.is_file():
            return super().do_GET()
        self.send_part(path, asked)

    def send_part(self, path, asked):
        first, last = asked.removeprefix("bytes=").split("-")
        size = path.stat().st_size
        first, last = int(first), min(int(last or size - 1), size - 1)
        self.server.asked.append((path.name, first, last))
        if first >= size:
            self.send_error(416)
            return
        with path.open("rb") as file:
            file.seek(first)
            content = file.read(last - first + 1)
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        self.wfile.write(content)


class Hub(Parts):
    """The part of the hub's interface that listing and reading a data set need; the data set is org/mesh."""

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer(head=False)

    def answer(self, head):
        path = unquote(self.path.partition("?")[0])
        self.server.paths.append(path)
        if path.startswith("/api/datasets/org/mesh"):
            rest = path.removeprefix("/api/datasets/org/mesh").strip("/")
            if rest.startswith("tree/"):
                return self.send_json(self.tree(rest.removeprefix("tree/").partition("/")[2]))
            if rest.startswith("paths-info/"):
                return self.send_json([])
            return self.send_json({"id": "org/mesh", "sha": COMMIT, "siblings": [], "tags": [], "private": False})
        if path.startswith(f"/datasets/org/mesh/resolve/{COMMIT}/"):
            file = Path(self.directory) / path.removeprefix(f"/datasets/org/mesh/resolve/{COMMIT}/")
            if file.is_file():
                asked = self.headers.get("Range")
                if asked and not head:
                    return self.send_part(file, asked)
                self.send_response(200)
                self.send_header("Content-Length", str(file.stat().st_size))
                self.send_header("ETag", '"1"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.end_headers()
                return None if head else self.wfile.write(file.read_bytes())
        self.send_error(404)
        return None

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode()
        try:
            wanted = json.loads(body)["paths"]
        except ValueError:
            from urllib.parse import parse_qs

            wanted = parse_qs(body)["paths"]
        wanted = [wanted] if isinstance(wanted, str) else wanted
        self.send_json(
            [self.entry(Path(self.directory) / path) for path in wanted if (Path(self.directory) / path).exists()]
        )

    def entry(self, path):
        name = path.relative_to(self.directory).as_posix()
        if path.is_dir():
            return {"type": "directory", "oid": "2" * 40, "size": 0, "path": name}
        return {"type": "file", "oid": "1" * 40, "size": path.stat().st_size, "path": name}

    def tree(self, folder):
        return [self.entry(path) for path in sorted((Path(self.directory) / folder).iterdir())]

    def send_json(self, content):
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@contextmanager
def serve(folder, kind=Parts):
    """Give the address of a server of a folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(kind, directory=str(folder)))
    server.asked, server.paths = [], []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
