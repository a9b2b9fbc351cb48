"""A real browser, in a process of its own: `python tests/browser.py ADDRESS < steps.json`.

Steps are one after the other: `{"js": CODE}` awaits the value of an async function's body,
`{"mouse": "press" | "move" | "release", "at": CODE}` moves the mouse to what the code returns,
`[x, y]` in the page, and `{"shot": FILE}` saves a picture; a step with `"wait": SECONDS` waits
then. Prints a JSON object: the values of the code, and what the page wrote to its console."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("QTWEBENGINE_DISABLE_SANDBOX", "1")
os.environ.setdefault("QTWEBENGINE_CHROMIUM_FLAGS", "--disable-gpu")

from PyQt6.QtCore import QEvent, QPointF, Qt, QUrl
from PyQt6.QtGui import QMouseEvent
from PyQt6.QtWebEngineCore import QWebEnginePage
from PyQt6.QtWebEngineWidgets import QWebEngineView
from PyQt6.QtWidgets import QApplication

SECONDS = 60.0  # for one step
EVENTS = {
    "press": QEvent.Type.MouseButtonPress,
    "move": QEvent.Type.MouseMove,
    "release": QEvent.Type.MouseButtonRelease,
}


class Page(QWebEnginePage):
    """A page that keeps what is written to its console."""

    def __init__(self, view: QWebEngineView) -> None:
        super().__init__(view)
        self.written: list[str] = []

    def javaScriptConsoleMessage(self, level: Any, message: str, line: int, source: str) -> None:
        self.written.append(f"{message} ({source}:{line})")


class Browser:
    def __init__(self, address: str) -> None:
        self.app = QApplication(["browser"])
        self.view = QWebEngineView()
        self.page = Page(self.view)
        self.view.setPage(self.page)
        self.view.resize(1400, 1150)
        self.view.show()
        loaded: list[bool] = []
        self.page.loadFinished.connect(loaded.append)
        self.view.load(QUrl(address))
        self.until(lambda: loaded)

    def until(self, is_so: Any) -> None:
        deadline = time.monotonic() + SECONDS
        while not is_so():
            self.app.processEvents()
            time.sleep(0.004)
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {SECONDS} seconds; {self.page.written}")

    def run(self, code: str) -> Any:
        """The value of the body of an async function."""
        self._now(
            f"window.done = undefined; (async () => {{ {code} }})().then("
            "(value) => { window.done = JSON.stringify({ value }); },"
            "(error) => { window.done = JSON.stringify({ error: String(error.stack) }); }); 0"
        )
        deadline = time.monotonic() + SECONDS
        while (done := self._now("window.done")) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(code)
        result = json.loads(done)
        if "error" in result:
            raise RuntimeError(result["error"])
        return result.get("value")

    def _now(self, code: str) -> Any:
        found: list[Any] = []
        self.page.runJavaScript(code, found.append)
        self.until(lambda: found)
        return found[0]

    def mouse(self, kind: str, at: Any) -> None:
        held = Qt.MouseButton.NoButton if kind == "release" else Qt.MouseButton.LeftButton
        button = Qt.MouseButton.NoButton if kind == "move" else Qt.MouseButton.LeftButton
        point, modifiers = QPointF(*at), Qt.KeyboardModifier.NoModifier
        target = self.view.focusProxy() or self.view
        self.app.sendEvent(target, QMouseEvent(EVENTS[kind], point, point, button, held, modifiers))

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end)


def main() -> None:
    browser, values = Browser(sys.argv[1]), []
    for step in json.load(sys.stdin):
        if "js" in step:
            values.append(browser.run(step["js"]))
        elif "mouse" in step:
            browser.mouse(step["mouse"], browser.run(step["at"]))
        elif "shot" in step:
            browser.view.grab().save(step["shot"])
        browser.wait(step.get("wait", 0.0))
    print(json.dumps({"values": values, "console": browser.page.written}))
    sys.stdout.flush()
    os._exit(0)  # Qt's own end may hang without a display


if __name__ == "__main__":
    main()
