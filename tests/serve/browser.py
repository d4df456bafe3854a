"""A headless Chromium, driven through chromedriver by the W3C's WebDriver protocol: https://www.w3.org/TR/webdriver2."""

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_KEYS = {"Tab": "\ue004", "Enter": "\ue007", "Control": "\ue009", "Shift": "\ue008", "Backspace": "\ue003"}

_MOST_TYPED = 100
_PASTE = """
const field = document.querySelector(arguments[0]);
field.focus();
field.value = arguments[1];
field.dispatchEvent(new Event("input", {bubbles: true}));
"""


class Browser:
    """A window. Use as a context manager."""

    def __init__(self) -> None:
        self._driver = subprocess.Popen(
            [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        started = map(re.compile(r"started successfully on port (\d+)").search, self._driver.stdout)
        port = next(filter(None, started))[1]
        self._url = f"http://127.0.0.1:{port}/session"
        words = ["headless=new", "no-sandbox", "disable-gpu", "disable-background-networking"]
        options = {"args": [*words, "disable-dev-shm-usage", "hide-scrollbars"], "binary": CHROMIUM}
        logs = {"browser": "ALL", "performance": "ALL"}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": logs, "timeouts": {"script": 60_000}}
        session = self._call("", {"capabilities": {"alwaysMatch": wanted}})
        self._url += f"/{session['sessionId']}"

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._call("", method="DELETE")
        finally:
            self._driver.terminate()
            self._driver.wait(20)

    def open(self, url: str) -> None:
        """Load a page."""
        self._call("/url", {"url": url})

    def script(self, text: str, *arguments: Any) -> Any:
        """What a function body returns; a promise is waited for."""
        return self._call("/execute/sync", {"script": text, "args": list(arguments)})

    def devtools(self, command: str, **parameters: Any) -> Any:
        """A command of Chrome's DevTools protocol."""
        return self._call("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def window(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """As wide as that, light or dark."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])

    def click(self, selector: str) -> None:
        """As a mouse does: fails where something else is in the way."""
        self._call(f"/element/{self._find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Instead of what stands in the field; a long text is put there, as by pasting."""
        if len(text) > _MOST_TYPED:
            self.script(_PASTE, selector, text)
            return
        element = self._find(selector)
        self._call(f"/element/{element}/clear", {})
        self._call(f"/element/{element}/value", {"text": text})

    def press(self, *names: str) -> None:
        """Keys, held until the last is pressed: press("Control", "Enter")."""
        keys = [_KEYS.get(name, name) for name in names]
        actions = [{"type": "keyDown", "value": key} for key in keys]
        actions += [{"type": "keyUp", "value": key} for key in reversed(keys)]
        self._call("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def text(self, selector: str) -> str:
        """As it is seen."""
        return self.script("return document.querySelector(arguments[0]).innerText.trim()", selector)

    def seen(self, selector: str) -> bool:
        """Whether there is such an element, and it takes room."""
        return self.script("return !!document.querySelector(arguments[0])?.offsetParent", selector)

    def table(self, selector: str) -> list[list[str]]:
        """The texts of the cells of a table, without its head."""
        return self.script(
            "return [...document.querySelectorAll(arguments[0] + ' tbody tr')]"
            ".map(row => [...row.cells].map(cell => cell.innerText.trim()))",
            selector,
        )

    def wait(self, condition: Callable[[], Any], seconds: float = 30) -> Any:
        """Until it holds; what it returned."""
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, f"not within {seconds} s"
            time.sleep(0.05)
        return found

    def picture(self, path: Path) -> None:
        """A PNG of the whole page."""
        path.write_bytes(
            base64.b64decode(self.devtools("Page.captureScreenshot", captureBeyondViewport=True)["data"])
        )

    def console(self) -> list[str]:
        """What was said there since the last time."""
        return [entry["message"] for entry in self._call("/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """URLs that were asked for since the last time."""
        entries = [
            json.loads(each["message"])["message"] for each in self._call("/se/log", {"type": "performance"})
        ]
        sent = [each["params"] for each in entries if each["method"] == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in sent]

    def _find(self, selector: str) -> str:
        return self._call("/element", {"using": "css selector", "value": selector})[_ELEMENT]

    def _call(self, path: str, body: Any = None, method: str | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._url + path, data, {"content-type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            told = json.load(error)["value"]
            raise AssertionError(f"{told['error']}: {told['message'][:500]}") from None
