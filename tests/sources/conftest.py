"""A real HTTP server on 127.0.0.1 that misbehaves on request, and a small hub on top of it."""

import hashlib
import json
import re
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from pipeline_lib.config.sources import SourceSettings
from pipeline_lib.sources.base import Workbench


@dataclass
class Fault:
    """What the next answer for a path does instead of the right thing."""

    kind: str  # drop, lie, endless, wrong, status, silent or stall
    after: int = 0
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, address: Any) -> None:
        """Connections that this server or the client broke on purpose are no news; anything else is printed."""
        if not isinstance(sys.exception(), (OSError, ValueError)):
            super().handle_error(request, address)


class MisbehavingServer:
    """Serves `files`; each request for a path first takes one entry of `faults[path]`, if any is left."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.json: dict[str, Any] = {}
        self.json_errors: dict[str, str] = {}
        self.redirects: dict[str, str] = {}
        self.ignores_range = False
        self.requests: list[tuple[str, str | None, float]] = []
        self.authorized: dict[str, list[str | None]] = defaultdict(list)
        self.stalled = threading.Event()
        self.silent = 0  # connections that are stalled now
        self.sent: dict[str, int] = defaultdict(int)
        self._httpd = _Listener(("127.0.0.1", 0), _handler(self))
        self.address = f"http://127.0.0.1:{self._httpd.server_address[1]}"
        threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def put(self, path: str, data: bytes) -> dict[str, str]:
        """Serve `data` at `path` and return the entry of `urls` for it."""
        self.files[path] = data
        return {"url": self.address + path, "sha256": hashlib.sha256(data).hexdigest()}

    def misbehave(self, path: str, kind: str, times: int = 1, **fields: Any) -> None:
        """Give the next `times` requests for the path this kind of answer."""
        self.faults[path] += [Fault(kind, **fields) for _ in range(times)]

    def ranges_asked(self, path: str) -> list[str | None]:
        return [range_ for asked, range_, _ in self.requests if asked == path]

    def release(self) -> None:
        """Let stalled connections end."""
        self.stalled.set()

    def close(self) -> None:
        self.release()
        self._httpd.shutdown()
        self._httpd.server_close()


def _handler(server: MisbehavingServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            server.requests.append((path, self.headers.get("Range"), time.monotonic()))
            server.authorized[path].append(self.headers.get("Authorization"))
            fault = server.faults[path].pop(0) if server.faults[path] else None
            if fault and fault.kind == "status":
                return self._answer(fault.status, b"busy", fault.headers)
            if path in server.json_errors:
                return self._answer(404, b"{}", {"X-Error-Code": server.json_errors[path]})
            if path in server.redirects:
                return self._answer(302, b"", {"Location": server.redirects[path]})
            if path in server.json:
                return self._answer(200, json.dumps(server.json[path]).encode(), {"Content-Type": "application/json"})
            if path not in server.files:
                return self._answer(404, b"no such file", {"X-Error-Code": "EntryNotFound"})
            return self._serve(server.files[path], path, fault)

        def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def _serve(self, data: bytes, path: str, fault: Fault | None) -> None:
            status, start, end = 200, 0, len(data)
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            headers = {}
            if asked and not server.ignores_range:
                status, start = 206, int(asked[1])
                end = min(len(data), int(asked[2]) + 1) if asked[2] else len(data)
                if start >= len(data):
                    return self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            body = data[start:end]
            if fault and fault.kind == "wrong":
                body = bytes(byte ^ 0x55 for byte in body)
            if fault and fault.kind == "silent":
                time.sleep(fault.after)
                return self._hang_up()
            if fault and fault.kind == "lie":  # a proxy that cuts the body and corrects the length
                body = body[: fault.after]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if fault and fault.kind == "endless":  # no length at all: the end of the connection is the end
                self.send_header("Connection", "close")
                body = body[: fault.after]
            else:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if fault and fault.kind in ("drop", "stall"):
                body = body[: fault.after]
            self.wfile.write(body)
            self.wfile.flush()
            server.sent[path] += len(body)
            if fault and fault.kind == "stall":  # the connection stays open and says nothing more
                server.silent += 1
                server.stalled.wait(20)
                server.silent -= 1
                self.close_connection = True
            if fault and fault.kind in ("drop", "endless"):
                self._hang_up()
            return None

        def _hang_up(self) -> None:
            self.close_connection = True
            self.connection.close()

    return Handler


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    running = MisbehavingServer()
    yield running
    running.close()


@pytest.fixture
def said() -> list[str]:
    """Lines that a source said."""
    return []


@pytest.fixture
def bench(tmp_path, said) -> Workbench:
    return Workbench(scratch=tmp_path / "scratch", say=said.append)


@pytest.fixture
def quick():
    """Settings of a source whose retries wait milliseconds."""

    def make(**fields: Any) -> SourceSettings:
        network = {} if fields.get("type") == "local" else {"longest_wait_seconds": 0.01, "timeout_seconds": 5.0}
        return SourceSettings(**{"name": "sample", "kind": "text", **network, **fields})

    return make


class FakeHub:
    """The hub's dataset-info, tree and resolve addresses for repositories given as {path: bytes}."""

    def __init__(self, server: MisbehavingServer):
        self.server = server

    def put(
        self, repo: str, commit: str, files: dict[str, bytes], card: dict | None = None, large: bool = True
    ) -> None:
        """Publish a commit as the head of `main`; `large` files are LFS files with a SHA-256."""
        for revision in ("main", commit):
            self.server.json[f"/api/datasets/{repo}/revision/{revision}"] = {
                "id": repo,
                "sha": commit,
                "cardData": card,
            }
        entries = []
        for path, data in sorted(files.items()):
            self.server.files[self.resolve(repo, commit, path)] = data
            blob = hashlib.sha1(b"blob %d\x00" % len(data) + data).hexdigest()
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob}
            if large:
                digest = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"size": len(data), "oid": digest, "pointerSize": 130}
            entries.append(entry)
        for folder in {"", *(path.rpartition("/")[0] for path in files)}:
            inside = [entry for entry in entries if entry["path"].startswith(f"{folder}/" if folder else "")]
            self.server.json[f"/api/datasets/{repo}/tree/{commit}" + (f"/{folder}" if folder else "")] = inside

    def resolve(self, repo: str, commit: str, path: str) -> str:
        return f"/datasets/{repo}/resolve/{commit}/{path}"


@pytest.fixture
def hub(server, monkeypatch) -> FakeHub:
    """A local hub, with the library's offline switch (set for the whole test run) turned off."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return FakeHub(server)
