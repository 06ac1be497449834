"""A real Chromium, spoken to over its debugging pipe: pages opened, clicked, photographed, their complaints noted."""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

__all__ = ["Browser", "Tab", "chromium", "find_chromium"]

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage",
    "--disable-component-update", "--disable-extensions", "--disable-sync", "--no-first-run", "--hide-scrollbars",
    "--force-color-profile=srgb", "--remote-debugging-pipe",
)  # fmt: skip
#: Texts whose contrast to their ground is below 4.5, as WCAG reckons it: what and where, and how they begin.
#: Colours come as rgb(), rgba() or color(srgb …); a canvas lays any of them over each other.
_CONTRAST = """(() => {
const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
const mixed = layers => {
  for (const layer of ['#fff', ...layers]) { canvas.fillStyle = layer; canvas.fillRect(0, 0, 1, 1); }
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
};
const linear = v => v <= 10.31 ? v / 3294.6 : ((v / 255 + .055) / 1.055) ** 2.4;
const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
const spoken = e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
const poor = new Map();
for (const e of document.querySelectorAll('body *')) {
  const drawn = e instanceof SVGElement;
  if (drawn ? e.tagName !== 'text' || !e.closest('svg.chart') : ['SCRIPT', 'STYLE'].includes(e.tagName)) continue;
  if (!spoken(e) || !e.checkVisibility({opacityProperty: true}) || e.getBoundingClientRect().right <= 0) continue;
  const style = getComputedStyle(e), grounds = [];
  for (let up = e; up; up = up.parentElement) grounds.unshift(getComputedStyle(up).backgroundColor);
  const ground = mixed(grounds), ink = mixed([...grounds, drawn ? style.fill : style.color]);
  const [low, high] = [light(ground), light(ink)].sort((a, b) => a - b), ratio = (high + .05) / (low + .05);
  const name = `${e.tagName}.${e.getAttribute('class') ?? ''} ${ink} on ${ground}: ${ratio.toFixed(2)}`;
  if (ratio < 4.5) poor.set(name, e.textContent.trim().slice(0, 40));
}
return [...poor].map(pair => pair.join(', '));
})()"""
#: A page that is silent for so long is taken to hang.
_PATIENCE_S = 60.0


def find_chromium() -> str | None:
    """The first Chromium or Chrome on the PATH."""
    return next((found for name in _PROGRAMS if (found := shutil.which(name))), None)


class Browser:
    """The protocol: JSON messages that end in a zero byte, written to descriptor 3, read from descriptor 4."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._last, self._rest = 0, b""
        self._tabs: dict[str, Tab] = {}

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Ask, and wait for the answer; events that come in between go to their tabs."""
        self._last += 1
        number = self._last
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        text = json.dumps(message).encode() + b"\0"
        while text:
            text = text[os.write(self._to, text) :]
        while True:
            answer = self.receive()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def receive(self) -> dict[str, Any]:
        """The next message; an event is noted by its tab first."""
        while b"\0" not in self._rest:
            assert select.select([self._back], [], [], _PATIENCE_S)[0], "Chromium does not answer"
            part = os.read(self._back, 1 << 20)
            assert part, "Chromium ended"
            self._rest += part
        text, self._rest = self._rest.split(b"\0", 1)
        message: dict[str, Any] = json.loads(text)
        if (tab := self._tabs.get(message.get("sessionId", ""))) and "method" in message:
            tab.note(message["method"], message["params"])
        return message

    @contextmanager
    def open(self, page: Path, width: int = 1300, height: int = 900, dark: bool = False) -> Iterator[Tab]:
        """Load a page into a tab of its own."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = self._tabs[session] = Tab(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        tab.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        tab.emulate(dark=dark)
        tab.load(page)
        try:
            yield tab
        finally:
            del self._tabs[session]
            self.call("Target.closeTarget", targetId=target)


class Tab:
    """One page.

    Attributes
    ----------
    problems : list of str
        Errors and warnings that the page or the browser wrote to the console, uncaught errors among them.
    requests : list of str
        Everything that the page asked for, itself first.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._loaded = False

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command to this page."""
        return self._browser.call(method, self._session, **parameters)

    def note(self, method: str, event: dict[str, Any]) -> None:
        """Remember what matters of an event."""
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            about = event["exceptionDetails"]
            self.problems.append(about.get("exception", {}).get("description") or about["text"])
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning", "assert"):
            self.problems.append(" ".join(str(part.get("value", "")) for part in event["args"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.problems.append(event["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])

    def emulate(self, dark: bool = False, medium: str = "") -> None:
        """Prefer dark or light; show as on screen or as printed."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        # Transitions would make pictures depend on when they are taken.
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self.call("Emulation.setEmulatedMedia", media=medium, features=[scheme, still])

    def load(self, page: Path) -> None:
        """Open a file and wait until it is there."""
        self._loaded = False
        answer = self.call("Page.navigate", url=page.as_uri())
        assert "errorText" not in answer, answer
        while not self._loaded:
            self._browser.receive()

    def value(self, script: str) -> Any:
        """What an expression comes to in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, f"{script}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element on the screen, scrolled into view first."""
        name = json.dumps(selector)
        script = (
            f"(() => {{ const e = document.querySelector({name}); if (!e) return null;"
            "e.scrollIntoView({block: 'center', behavior: 'instant'}); const b = e.getBoundingClientRect();"
            "return [b.x, b.y, b.width, b.height]; })()"
        )
        found = self.value(script)
        assert found is not None, f"no {selector}"
        return tuple(found)

    def click(self, selector: str) -> None:
        """Click the middle of an element with the mouse."""
        x, y, width, height = self.box(selector)
        assert width > 0, f"{selector} is not shown"
        assert height > 0, f"{selector} is not shown"
        at = {"x": x + width / 2, "y": y + height / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **at)

    def point(self, x: float, y: float) -> None:
        """Move the mouse somewhere on the screen."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str) -> None:
        """Press a key: Tab, Enter, Space, or an arrow."""
        code, text = {"Tab": (9, ""), "Enter": (13, "\r"), "Space": (32, " "), "ArrowRight": (39, ""),
                      "ArrowLeft": (37, "")}[key]  # fmt: skip
        name = {"key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **name, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **name)

    def pale(self) -> list[str]:
        """Texts of the page, and of its charts, that are hard to read on their ground."""
        return list(self.value(_CONTRAST))

    def picture(self, whole: bool = True) -> Image.Image:
        """The page, or what the window shows of it, as it looks."""
        more: dict[str, Any] = {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            # Taller than what Chromium's software painting holds is cut off.
            more["clip"] = {"x": 0, "y": 0, "scale": 1, "width": size["width"], "height": min(size["height"], 16000)}
            more["captureBeyondViewport"] = True
        data = self.call("Page.captureScreenshot", format="png", **more)["data"]
        return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")

    def pdf(self) -> bytes:
        """The page as it prints."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"])


@contextmanager
def chromium(program: str, profile: Path) -> Iterator[Browser]:
    """Start a browser with an empty profile and no network, and end it afterwards."""
    ends = [*os.pipe(), *os.pipe()]
    # Away from 3 and 4, where the shell below puts the browser's two ends.
    theirs_in, to, back, theirs_out = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    line = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out} {theirs_in}<&- {theirs_out}>&-'
    command = ["bash", "-c", line, "bash", program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        command,
        pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    browser = Browser(to, back)
    try:
        yield browser
    finally:
        try:
            browser.call("Browser.close")
            process.wait(20)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        os.close(to)
        os.close(back)
