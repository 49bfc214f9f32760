"""A server on loopback that answers as the hub does for one model, for tests that download from it."""

import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlparse

SHA = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/model"
BAD_TOKEN = "Invalid credentials in Authorization header"


class Hub:
    """A server that answers as the hub does for one model.

    Attributes:
        files: name -> content.
        status: what every request is answered with; 200: as it should be.
        code: the hub's own error code, sent as a header.
        lost: a file that is listed and not there.
        cut: a file of which half is sent, after all that the client wants besides is there; then the server is gone.
        asked: how many requests came.
        sent: names of the files whose content was sent, in order, half of `cut` included.
    """

    def __init__(self, files: dict[str, bytes], name: str = NAME):
        self.files, self.name, self.status, self.code, self.lost, self.cut = files, name, 200, "", "", ""
        self.asked, self.sent = 0, list[str]()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # noqa: N802 - the base class's names
                hub.answer(self, body=True)

            def do_HEAD(self) -> None:  # noqa: N802
                hub.answer(self, body=False)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        self.asked += 1
        path = urlparse(request.path).path
        if self.status != 200:
            return self._send(request, self.status, b"{}", body=body)
        if path == f"/api/models/{self.name}/revision/main":
            siblings = [{"rfilename": name} for name in self.files]
            found = {"id": self.name, "sha": SHA, "siblings": siblings}
            return self._send(request, 200, json.dumps(found).encode(), body=body)
        if path == f"/api/models/{self.name}/tree/{SHA}":
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.files.items()
            ]
            return self._send(request, 200, json.dumps(tree).encode(), body=body)
        name = path.removeprefix(f"/{self.name}/resolve/{SHA}/")
        if name in self.files and name != self.lost:
            if body:
                self._wait_for_others(name)
                self.sent.append(name)
            return self._send(request, 200, self.files[name], body=body, half=body and name == self.cut)
        return self._send(
            request, 404, b"{}", code="EntryNotFound" if name in self.files else "RepoNotFound", body=body
        )

    def stop(self) -> None:
        """Answer nobody any more."""
        self.server.shutdown()
        self.server.socket.close()

    def _wait_for_others(self, name: str) -> None:
        others = {other for other in self.files if not re.search(r"\.(bin|md)$|^generation", other)} - {self.cut}
        until = time.monotonic() + 30
        while name == self.cut and not others <= set(self.sent) and time.monotonic() < until:
            time.sleep(0.05)

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        content: bytes,
        *,
        body: bool,
        code: str = "",
        half: bool = False,
    ) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(content)))
        request.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        request.send_header("X-Repo-Commit", SHA)
        if (code or self.code) == BAD_TOKEN:
            request.send_header("X-Error-Message", BAD_TOKEN)
        elif code or self.code:
            request.send_header("X-Error-Code", code or self.code)
        request.end_headers()
        if body:
            request.wfile.write(content[: len(content) // 2] if half else content)
        if half:
            time.sleep(1)  # files that were sent are not yet renamed on the other side
            self.stop()
