"""A page in a headless Chromium, asked over its debugging pipe: no driver, no port, no network."""

import base64
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import NamedTuple

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
SECONDS = 120


def found() -> str | None:
    """The program, where PATH has one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Shown(NamedTuple):
    """A page as it was shown."""

    content_width: int
    """Of all that it holds, in CSS pixels: more than the window's is a horizontal scroll."""
    paper: str
    """The body's background colour."""
    requested: list[str]
    """Every URL that was loaded."""
    complaints: list[str]
    """What the console and the log said."""
    picture: bytes
    """PNG of the whole page."""


class Browser:
    """`with Browser(folder) as browser:` runs one; its profile is in `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> "Browser":
        to_read, self._to_write = os.pipe()
        self._from_read, from_write = os.pipe()
        program = [str(found()), *FLAGS, f"--user-data-dir={self.folder / 'profile'}", "about:blank"]
        # The program reads commands from file 3 and writes answers to file 4, each ended by a zero byte.
        redirect = f'exec "$@" 3<&{to_read} 4>&{from_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", redirect, "bash", *program], pass_fds=(to_read, from_write), stderr=subprocess.DEVNULL
        )
        os.close(to_read)
        os.close(from_write)
        self._answers = os.fdopen(self._from_read, "rb")
        self._rest, self._sent = b"", 0
        self._limit = threading.Timer(SECONDS, self._process.kill)
        self._limit.start()
        return self

    def __exit__(self, *_) -> None:
        self._limit.cancel()
        self._process.kill()
        self._process.wait()
        os.close(self._to_write)
        self._answers.close()

    def show(self, url: str, width: int, scheme: str) -> Shown:
        """Load `url` in a new window `width` pixels wide, with the colour scheme "light" or "dark"."""
        events: list[dict] = []
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        page = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self._ask(f"{domain}.enable", page)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._ask("Emulation.setEmulatedMedia", page, features=[feature])
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self._ask("Emulation.setDeviceMetricsOverride", page, **screen)
        self._ask("Page.navigate", page, events, url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in events):
            events.append(self._message())
        width_of_all = self._value("document.documentElement.scrollWidth", page, events)
        paper = self._value("getComputedStyle(document.body).backgroundColor", page, events)
        asked = {"format": "png", "captureBeyondViewport": True}
        picture = self._ask("Page.captureScreenshot", page, events, **asked)["data"]
        self._ask("Target.closeTarget", targetId=target)
        return Shown(
            width_of_all,
            paper,
            [e["params"]["request"]["url"] for e in events if e.get("method") == "Network.requestWillBeSent"],
            [
                json.dumps(e["params"])
                for e in events
                if e.get("method") in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
            ],
            base64.b64decode(picture),
        )

    def _value(self, expression: str, page: str, events: list[dict]):
        return self._ask("Runtime.evaluate", page, events, expression=expression)["result"]["value"]

    def _ask(self, method: str, page: str | None = None, events: list[dict] | None = None, **params) -> dict:
        """The answer to one command; what else the browser says before it goes to `events`."""
        self._sent += 1
        command = {"id": self._sent, "method": method, "params": params} | ({"sessionId": page} if page else {})
        os.write(self._to_write, json.dumps(command).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == self._sent:
                assert "error" not in message, message
                return message["result"]
            if events is not None:
                events.append(message)

    def _message(self) -> dict:
        while b"\0" not in self._rest:
            more = os.read(self._answers.fileno(), 2**16)
            assert more, "the browser ended, or took longer than it may"
            self._rest += more
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)
