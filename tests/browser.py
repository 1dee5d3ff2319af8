"""Chromium for the tests of pages; the fixture ``browser`` skips where there is none."""

import itertools
import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """Chromium without a window, driven through its debugging pipe; collects what it complains of and asks for."""

    def __init__(self, folder: Path):
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # Chromium takes commands on descriptor 3 and answers on 4.
        command = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        options += ["--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"]
        self._process = subprocess.Popen(
            ["bash", "-c", command, "bash", BROWSER, *options, f"--user-data-dir={folder / 'profile'}", "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        # A browser that hangs is ended, which ends the waiting for its answer.
        self._timer = threading.Timer(90, self._process.kill)
        self._timer.start()
        self._answers = os.fdopen(self._read, "rb")
        self._numbers, self._rest = itertools.count(1), b""
        self.complaints, self.requested = [], []
        self.downloads = folder / "downloads"
        self._session = None
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params) -> dict:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != number:
            self._note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path: Path) -> None:
        self.send("Page.navigate", url=path.as_uri())
        while not self.run("document.readyState === 'complete' && location.href !== 'about:blank'"):
            time.sleep(0.05)

    def run(self, script: str):
        """The value of an expression or of its promise, as if typed into the page's console."""
        options = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        answer = self.send("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def type(self, selector: str, text: str) -> None:
        """Types over what stands in a field, as a keyboard does."""
        self.run(f"document.querySelector({json.dumps(selector)}).select()")
        self.send("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def downloaded(self, name: str, seconds: float = 20) -> bytes:
        """Content of a downloaded file, which is removed."""
        end = time.monotonic() + seconds
        # While it is written it has another name.
        while not (self.downloads / name).exists():
            assert time.monotonic() < end, f"no {name} among {list(self.downloads.glob('*'))}"
            time.sleep(0.05)
        content = (self.downloads / name).read_bytes()
        (self.downloads / name).unlink()
        return content

    def close(self) -> None:
        self._timer.cancel()
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        self._answers.close()

    def _receive(self) -> dict:
        while b"\0" not in self._rest:
            data = self._answers.read1(1 << 16)
            assert data, "the browser has ended"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict) -> None:
        if event.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.complaints.append(event["params"])
        if event.get("method") == "Page.javascriptDialogOpening":
            self.complaints.append(event["params"])
        if event.get("method") == "Network.requestWillBeSent":
            self.requested.append(event["params"]["request"]["url"])
