"""Pages in a real browser: what they look like to a script in them, and what they ask of the network."""

import html
import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH to open pages in")

HOSTILE = (
    "</textarea></title></style></script><script>window.pwned=1</script>"
    '<img src=x onerror="window.pwned=1"><img src="http://leak.test/image">'
    # Without double quotes and spaces: JSON escapes the first and a component replaces the second, by chance disarming.
    "<img/src='x'onerror='window.pwned=1'><img/src=http://leak.test/bare>"
    '"><svg onload=window.pwned=1><b>{{7*7}}</b>${7*7}%{x}\u2028\u2029'
    "</td><!--<script>"
    '<a href="javascript:window.pwned=1">x</a>&lt;img src=x onerror=window.pwned=1&gt;\u202e'
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-sync",
    "--disable-features=OptimizationHints,MediaRouter,Translate,NetworkTimeServiceQuerying",
]
# What Chromium asks for on its own, with an empty page too and whatever the flags.
OWN_HOSTS = ("accounts.google.com", "clients2.google.com", "update.googleapis.com")


@contextmanager
def recording_proxy() -> Iterator[tuple[int, list[str]]]:
    """A socket that plays the proxy for every host: it writes down what is asked of it and answers nothing."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked: list[str] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(2)
                try:
                    asked.append(connection.recv(2048).decode("latin-1").split("\r\n")[0])
                    connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                except OSError:
                    asked.append("a connection without a request")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], asked
    finally:
        # A blocked accept does not notice a close; a last connection wakes it up.
        asked_before = len(asked)
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(timeout=5)
        del asked[asked_before:]


def open_page(
    page: str, folder: Path, probe: str, *, size: str = "1300,2000", query: str = "", flags: Sequence[str] = ()
) -> tuple[dict, list[str]]:
    """Open HTML text as a file; return what the probe saw, and every request that the browser made.

    The probe is a script element that stands first in the page and writes JSON to `data-probe` of the root. A
    query such as "?q=word" stands behind the file's address.
    """
    assert CHROMIUM is not None
    file = folder / "page.html"
    file.write_bytes(page.replace("<head>", "<head>" + probe, 1).encode("utf-8", "replace"))
    with recording_proxy() as (port, asked):
        command = [
            CHROMIUM,
            *FLAGS,
            *flags,
            f"--user-data-dir={folder / 'profile'}",
            f"--proxy-server=127.0.0.1:{port}",
            "--proxy-bypass-list=<-loopback>",
            "--virtual-time-budget=60000",
            f"--window-size={size}",
            "--dump-dom",
            file.as_uri() + query,
        ]
        done = subprocess.run(command, capture_output=True, timeout=180, check=True)
        shutil.rmtree(folder / "profile", ignore_errors=True)
        requests = [request for request in asked if not any(host in request for host in OWN_HOSTS)]
    found = re.search(r'<html[^>]* data-probe="([^"]*)"', done.stdout.decode("utf-8", "replace"))
    assert found is not None, done.stderr.decode()[-2000:]
    return json.loads(html.unescape(found[1])), requests


def probe_of(steps: str) -> str:
    """A probe for `open_page` that runs some steps in JavaScript and reports the object `seen`, with all errors in it.

    The steps may await, `await pause(20)` for one, and fill `seen`.
    """
    return f"""<script>
window.errors = [];
window.addEventListener("error", (event) => window.errors.push(String(event.message)));
window.addEventListener("unhandledrejection", (event) => window.errors.push(String(event.reason)));
const pause = (time) => new Promise((go) => setTimeout(go, time));
const seen = {{}};
const look = async () => {{
{steps}
}};
setTimeout(() => look().catch((error) => window.errors.push(String(error.stack ?? error))).then(() => {{
  document.documentElement.dataset.probe = JSON.stringify({{ ...seen, errors: window.errors }});
}}), 0);
</script>"""


def ready_in_page_and_frame(views: list[str], folder: Path) -> tuple[int, int]:
    """How many of some views draw themselves in one page, and of the last, which stands in a frame as Colab does it."""
    frame = json.dumps(views[-1]).replace("</", "<\\/")
    page = (
        f"<!doctype html><html><head></head><body>{''.join(views[:-1])}<iframe></iframe>"
        f"<script>document.querySelector('iframe').srcdoc = {frame};</script></body></html>"
    )
    steps = """
await pause(2500);
const ready = (where) => where.querySelectorAll(".mechmem[data-ready]").length;
seen.own = ready(document);
seen.framed = ready(document.querySelector("iframe").contentDocument);
"""
    seen, requests = open_page(page, folder, probe_of(steps))
    assert seen["errors"] == [] and requests == []
    return seen["own"], seen["framed"]
