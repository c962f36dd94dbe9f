"A headless Chromium, spoken to by its DevTools protocol: no driver to install, for tornado comes with Jupyter's kernel."

import asyncio
import base64
import functools
import gzip
import http.server
import importlib.util
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from tornado.websocket import websocket_connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find() -> str | None:
    return next((p for p in map(shutil.which, NAMES) if p), None)


PREFIX = "/tune_a_video_nbs/"  # where the site is published: some of its addresses, such as the 404 page's, begin with that


class Pages(http.server.SimpleHTTPRequestHandler):
    "As the host does it: under the prefix, text compressed."

    def do_GET(self):
        if not self.path.startswith(PREFIX):
            return self.send_error(404)
        path = Path(self.translate_path(self.path.removeprefix(PREFIX[:-1])))
        if not path.is_file():
            return self.send_error(404)
        kind, data = self.guess_type(str(path)), path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if kind.startswith("text/") or kind in (
            "application/json",
            "application/javascript",
            "image/svg+xml",
        ):
            data = gzip.compress(data, 6)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


def serve(folder: Path):
    "The folder over http on a free port of this machine; `.url`, and `.shutdown()` when done."
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Pages, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}{PREFIX[:-1]}"
    return server


def has_voila() -> bool:
    return importlib.util.find_spec("voila") is not None


@contextmanager
def voila(folder: Path, code: str, seconds: float = 60):
    "A notebook of one cell as an app, with a kernel of its own, in `folder`. Yields its address, for this machine only; ends with all it started."
    cell = dict(cell_type="code", id="app", execution_count=None, metadata={}, outputs=[], source=code)
    kernel = dict(display_name="python3", language="python", name="python3")
    (folder / "app.ipynb").write_text(
        json.dumps(dict(cells=[cell], metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)),
        encoding="utf-8",
    )
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    root = str(Path(__file__).resolve().parent.parent)
    env = os.environ | dict(
        PYTHONPATH=os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
        JUPYTER_RUNTIME_DIR=str(folder / "runtime"),
        JUPYTER_CONFIG_DIR=str(folder / "config"),
        IPYTHONDIR=str(folder / "ipython"),
    )
    with open(folder / "voila.log", "wb") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "voila",
                "app.ipynb",
                "--no-browser",
                f"--port={port}",
                "--Voila.ip=127.0.0.1",
                "--show_tracebacks=True",
            ],
            cwd=folder,
            env=env,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        end = time.time() + seconds
        while process.poll() is None and time.time() < end:
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        else:
            raise AssertionError(f"Voila did not start: {(folder / 'voila.log').read_text()[-2000:]}")
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()  # ends its kernels, too
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


class Browser:
    "One tab. `errors` and `requests` hold what the page at hand has said and asked since `go`."

    def __init__(self, folder: Path):
        self.loop, self.ids = asyncio.new_event_loop(), itertools.count(1)
        self.process = subprocess.Popen(
            [
                find(),
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--mute-audio",
                "--no-first-run",
                "--disable-background-networking",
                "--hide-scrollbars",
                "--autoplay-policy=no-user-gesture-required",
                f"--user-data-dir={folder}",
                "--remote-debugging-port=0",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.events, self.errors, self.requests, self.weight = [], [], {}, 0
        port_file = folder / "DevToolsActivePort"
        for _ in range(300):
            if port_file.exists() and "\n" in port_file.read_text():
                break
            time.sleep(0.1)
        port, path = port_file.read_text().split("\n")[:2]
        self.socket = self.run(self.connect(f"ws://127.0.0.1:{port}{path}"))
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(domain + ".enable")
        self.size(1440, 900)

    def run(self, job):
        return self.loop.run_until_complete(asyncio.wait_for(job, 60))

    async def connect(self, address):
        return await websocket_connect(address, max_message_size=2**28)

    def send(self, method: str, **params):
        "One command and its answer; what happens meanwhile is noted."
        number = next(self.ids)
        message = dict(id=number, method=method, params=params)
        if hasattr(self, "session"):
            message["sessionId"] = self.session

        async def ask():
            await self.socket.write_message(json.dumps(message))
            while True:
                got = json.loads(await self.socket.read_message())
                if got.get("id") == number:
                    return got
                self._note(got)

        got = self.run(ask())
        if "error" in got:
            raise RuntimeError(f"{method}: {got['error']}")
        return got["result"]

    def _note(self, event: dict):
        name, p = event.get("method"), event.get("params", {})
        self.events.append(name)
        if name == "Runtime.exceptionThrown":
            self.errors.append(
                p["exceptionDetails"].get("exception", {}).get("description") or p["exceptionDetails"]["text"]
            )
        if name == "Runtime.consoleAPICalled" and p["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in p["args"]))
        if name == "Log.entryAdded" and p["entry"]["level"] == "error":
            self.errors.append(f"{p['entry']['text']} {p['entry'].get('url', '')}")
        if name == "Network.requestWillBeSent" and not p["request"]["url"].startswith(
            ("data:", "blob:", "about:")
        ):
            self.requests[p["requestId"]] = p["request"]["url"]
        if name == "Page.fileChooserOpened":
            self.chooser = p["backendNodeId"]
        if name == "Network.loadingFinished" and p["requestId"] in self.requests:
            self.weight += p["encodedDataLength"]

    def go(self, url: str, wait: float = 0.4, seconds: float = 10):
        "Open a page and wait until it has loaded, and a moment more."
        self.send("Page.navigate", url="about:blank")
        self.events, self.errors, self.requests, self.weight = [], [], {}, 0
        self.send("Network.setCacheDisabled", cacheDisabled=True)
        self.send("Page.navigate", url=url)
        self.until("document.readyState == 'complete' && location.href != 'about:blank'", seconds)
        self.pause(wait)

    def js(self, code: str):
        "The value of an expression in the page; a promise is awaited."
        got = self.send(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if "exceptionDetails" in got:
            raise RuntimeError(
                got["exceptionDetails"].get("exception", {}).get("description", str(got["exceptionDetails"]))
            )
        return got["result"].get("value")

    def until(self, code: str, seconds: float = 10):
        end = time.time() + seconds
        while time.time() < end:
            if self.js(code):
                return
            time.sleep(0.05)
        raise AssertionError(f"after {seconds} s still not: {code}")

    def pause(self, seconds: float):
        self.js(f"new Promise(r => setTimeout(r, {seconds * 1000}))")

    def key(self, key: str, code: int):
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def type(self, text: str):
        self.send("Input.insertText", text=text)

    def size(self, width: int, height: int):
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def click(self, element: str):
        "With the mouse, in the middle of the element that this code gives."
        frame = "await new Promise(requestAnimationFrame)"  # twice, so that what moves has moved
        x, y = self.js(
            f"(async e => {{ e.scrollIntoView({{block: 'center'}}); {frame}; {frame}; const r = e.getBoundingClientRect(); return [r.x + r.width/2, r.y + r.height/2] }})({element})"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def fill(self, element: str, text: str):
        "Type in place of what a field holds, and leave it."
        self.click(element)
        self.js(f"({element}).select()")
        if text:
            self.type(text)
        else:
            self.key("Delete", 46)
        self.key("Tab", 9)

    def choose(self, button: str, *paths: Path):
        "Click what opens the dialog for files, and pick these."
        self.chooser = None
        self.send("Page.setInterceptFileChooserDialog", enabled=True)
        self.click(button)
        end = time.time() + 10
        while self.chooser is None and time.time() < end:
            self.pause(0.05)
        self.send("DOM.setFileInputFiles", backendNodeId=self.chooser, files=[str(p) for p in paths])

    def picture(self, path: Path, whole: bool = False, element: str = ""):
        "A screenshot of what is in view, of the whole page, or of the element that this code gives."
        part = {}
        if element:
            box = self.js(
                f"(e => {{ const r = e.getBoundingClientRect(); return {{x: r.x + scrollX, y: r.y + scrollY, width: r.width, height: r.height, scale: 1}} }})({element})"
            )
            part, whole = dict(clip=box), True
        data = self.send("Page.captureScreenshot", captureBeyondViewport=whole, **part)["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(data))

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)
        self.loop.close()
