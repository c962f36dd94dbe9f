"A headless Chromium, spoken to by its DevTools protocol through tornado, which comes with Jupyter's kernel."

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
from contextlib import contextmanager, suppress
from pathlib import Path

from tornado.websocket import websocket_connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find() -> str | None:
    "The path of a Chromium, if there is one."
    return next((path for path in map(shutil.which, NAMES) if path), None)


PREFIX = "/tune_a_video_nbs/"  # where the site is published: some of its addresses begin with that
COMPRESSED = ("application/json", "application/javascript", "image/svg+xml")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--mute-audio",
    "--no-first-run",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--autoplay-policy=no-user-gesture-required",
    "--remote-debugging-port=0",
)


class Pages(http.server.SimpleHTTPRequestHandler):
    "As the host does it: under the prefix, text compressed."

    def do_GET(self):
        if not self.path.startswith(PREFIX):
            return self.send_error(404)
        path = Path(self.translate_path(self.path.removeprefix(PREFIX[:-1])))
        if not path.is_file():
            return self.send_error(404)
        kind = self.guess_type(str(path))
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if kind.startswith("text/") or kind in COMPRESSED:
            data = gzip.compress(data, 6)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


def serve(folder: Path):
    "The folder over http on a free port of this machine; `.url`, and `.shutdown()` when done."
    handler = functools.partial(Pages, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}{PREFIX[:-1]}"
    return server


def has_voila() -> bool:
    return importlib.util.find_spec("voila") is not None


@contextmanager
def voila(folder: Path, code: str, seconds: float = 60):
    """A notebook of one cell as an app, with a kernel of its own, in `folder`.

    Yields its address, for this machine only; ends with all it started."""
    cell = dict(cell_type="code", id="app", execution_count=None, metadata={}, outputs=[], source=code)
    kernel = dict(display_name="python3", language="python", name="python3")
    notebook = dict(cells=[cell], metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)
    (folder / "app.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    port = free_port()
    command = [sys.executable, "-m", "voila", "app.ipynb", "--no-browser", f"--port={port}"]
    command += ["--Voila.ip=127.0.0.1", "--show_tracebacks=True"]
    with open(folder / "voila.log", "wb") as log:
        streams = dict(stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        own = dict(cwd=folder, env=environment(folder), start_new_session=True)
        process = subprocess.Popen(command, **streams, **own)
    try:
        wait_for_port(process, port, seconds, folder / "voila.log")
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()  # ends its kernels, too
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def environment(folder: Path) -> dict[str, str]:
    "Variables for a server that keeps its files in a folder and finds the library of this checkout."
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "IPYTHONDIR": str(folder / "ipython"),
    }


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for_port(process: subprocess.Popen, port: int, seconds: float, log: Path) -> None:
    "Wait until a server answers, or raise with the end of its log."
    end = time.time() + seconds
    while process.poll() is None and time.time() < end:
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"Voila did not start: {log.read_text()[-2000:]}")


def description(details: dict) -> str:
    "What an exception in a page says."
    return details.get("exception", {}).get("description") or details["text"]


# Twice a frame is waited for, so that what moves has moved.
MIDDLE = """(async element => {
  element.scrollIntoView({block: 'center'});
  await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  const box = element.getBoundingClientRect();
  return [box.x + box.width/2, box.y + box.height/2];
})(%s)"""
BOX = """(element => {
  const box = element.getBoundingClientRect();
  return {x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: box.height, scale: 1};
})(%s)"""


class Browser:
    "One tab. `errors` and `requests` hold what the page at hand has said and asked since `go`."

    def __init__(self, folder: Path):
        self.loop = asyncio.new_event_loop()
        self.ids = itertools.count(1)
        command = [find(), *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        nowhere = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdout=nowhere, stderr=nowhere)
        self.forget()
        port, path = self.address(folder / "DevToolsActivePort")
        self.socket = self.run(self.connect(f"ws://127.0.0.1:{port}{path}"))
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(domain + ".enable")
        self.size(1440, 900)

    def forget(self):
        "Begin to note anew what a page says and asks."
        self.events = []
        self.errors = []
        self.requests = {}
        self.weight = 0  # bytes that came

    def address(self, file: Path) -> list[str]:
        "Port and path of the browser, which it writes into a file once it is there."
        for _ in range(300):
            if file.exists() and "\n" in file.read_text():
                break
            time.sleep(0.1)
        return file.read_text().split("\n")[:2]

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
        "Keep what an event tells of errors, requests and sizes."
        name = event.get("method")
        params = event.get("params", {})
        self.events.append(name)
        if name == "Runtime.exceptionThrown":
            self.errors.append(description(params["exceptionDetails"]))
        elif name == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(
                " ".join(str(arg.get("value", arg.get("description"))) for arg in params["args"])
            )
        elif name == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif name == "Network.requestWillBeSent":
            address = params["request"]["url"]
            if not address.startswith(("data:", "blob:", "about:")):
                self.requests[params["requestId"]] = address
        elif name == "Network.loadingFinished" and params["requestId"] in self.requests:
            self.weight += params["encodedDataLength"]
        elif name == "Page.fileChooserOpened":
            self.chooser = params["backendNodeId"]

    def go(self, url: str, wait: float = 0.4, seconds: float = 10):
        "Open a page and wait until it has loaded, and a moment more."
        self.send("Page.navigate", url="about:blank")
        self.forget()
        self.send("Network.setCacheDisabled", cacheDisabled=True)
        self.send("Page.navigate", url=url)
        self.until("document.readyState == 'complete' && location.href != 'about:blank'", seconds)
        self.pause(wait)

    def js(self, code: str):
        "The value of an expression in the page; a promise is awaited."
        how = dict(returnByValue=True, awaitPromise=True, userGesture=True)
        got = self.send("Runtime.evaluate", expression=code, **how)
        if "exceptionDetails" in got:
            raise RuntimeError(description(got["exceptionDetails"]))
        return got["result"].get("value")

    def until(self, code: str, seconds: float = 10):
        "Wait until an expression in the page is true."
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
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.send("Emulation.setDeviceMetricsOverride", **size)

    def click(self, element: str):
        "With the mouse, in the middle of the element that this code gives."
        x, y = self.js(MIDDLE % element)
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
            part = dict(clip=self.js(BOX % element))
            whole = True
        data = self.send("Page.captureScreenshot", captureBeyondViewport=whole, **part)["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(data))

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)
        self.loop.close()
