"""A real S3 server on the loopback interface, behind a proxy that can count, fail or refuse requests."""

from __future__ import annotations

import http.client
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

START_SECONDS = 120
SECRET = "a-secret-that-nobody-may-see"
BUCKET = "units"

PASS, CUT, CUT_AFTER = "pass", "cut off before it is done", "cut off when it is done"
ERROR, DENY = "answer 500", "answer 403"

Judge = Callable[[str, str], str]  # the verdict on a request, by its method and its path with the keys that it deletes


class Proxy(ThreadingHTTPServer):
    """A proxy that forwards requests, or fails them as `judge` decides."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, server: S3Server) -> None:
        self.s3 = server
        self.one_step = threading.Lock()
        super().__init__(("127.0.0.1", server.port), ProxyHandler)
        server.port = self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients are killed here


class ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536
    disable_nagle_algorithm = True
    server: Proxy

    def setup(self) -> None:
        super().setup()
        self._behind = http.client.HTTPConnection("127.0.0.1", self.server.s3.moto_port)

    def finish(self) -> None:
        self._behind.close()
        with suppress(OSError):
            super().finish()

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        named = body.decode() if self.path.endswith("?delete") else ""
        verdict = self.server.s3.judge(self.command, self.path + named) if self.server.s3.is_open else CUT
        if verdict == CUT:
            self.close_connection = True
            return
        if verdict == ERROR:
            self._answer(500, {}, b"<Error><Code>InternalError</Code><Message>told to fail</Message></Error>")
            return
        if verdict == DENY:
            self._answer(403, {}, b"<Error><Code>AccessDenied</Code><Message>told to deny</Message></Error>")
            return
        # S3 checks the condition and writes in one step; moto does it in two, so a lock makes them one.
        is_conditional = self.headers.get("If-Match") or self.headers.get("If-None-Match")
        with self.server.one_step if is_conditional else nullcontext():
            self._behind.request(self.command, self.path, body, dict(self.headers))
            answer = self._behind.getresponse()
            data = answer.read()
        if verdict == CUT_AFTER:
            self.close_connection = True
            return
        self._answer(answer.status, dict(answer.getheaders()), data)

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward

    def log_message(self, *_: object) -> None:
        pass


class S3Server:
    """Moto's server in a process. It loses its data when it ends, so closing the proxy makes it unreachable."""

    def __init__(self, directory: Path) -> None:
        self.port = self.moto_port = 0
        self.judge: Judge = lambda method, path: PASS
        self.is_open = False
        self._log = directory / "moto.log"

    def start(self) -> None:
        command = [sys.executable, "-c", _SERVE]
        with self._log.open("w") as log:
            self._moto = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._moto.stdout
        self.moto_port = int(self._moto.stdout.readline())
        address = f"http://127.0.0.1:{self.moto_port}/{BUCKET}"
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(address, method="PUT")).close()
                break
            except OSError:
                assert self._moto.poll() is None and time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.05)
        self.come_back()

    def go_away(self) -> None:
        """Refuse new connections, and cut open ones at their next request."""
        self.is_open = False
        self._proxy.shutdown()
        self._proxy.server_close()

    def come_back(self) -> None:
        self._proxy = Proxy(self)
        self.is_open = True
        threading.Thread(target=self._proxy.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self.is_open:
            self.go_away()
        self._moto.kill()
        self._moto.wait()
        assert self._moto.stdout
        self._moto.stdout.close()

    def require_credentials(self, required: bool) -> None:
        """Refuse all credentials from now on, or accept all."""
        address = f"http://127.0.0.1:{self.moto_port}/moto-api/reset-auth"
        count = b"0" if required else b"inf"
        request = urllib.request.Request(address, count, {"Content-Type": "text/plain"}, method="POST")
        urllib.request.urlopen(request).close()

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables for its clients."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


_SERVE = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
print(server.port, flush=True)
server.serve_forever()
"""
