"""A headless Chromium, for looking at pages as people do."""

import html
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

INSTALL_TIMEOUT_S, TIMEOUT_S = 300, 60
INSTALL = ("apt-get update -q", "apt-get install -y -q --no-install-recommends chromium")
FRAME = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe srcdoc="{page}" style="width:{width}px;height:900px;border:0"></iframe><pre id="found"></pre><script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument, view = page.defaultView;
  document.getElementById("found").textContent = JSON.stringify(({ask})(page, view));
}}
</script>"""


class Browser:
    """Opens one page at a time, each in a browser of its own."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program, self._folder = program, folder

    def screenshot(self, page: Path, target: Path, *, width: int, height: int, dark: bool = False) -> None:
        self._run(page, f"--screenshot={target}", f"--window-size={width},{height}", dark=dark)

    def ask(self, page: Path, question: str, *, width: int, dark: bool = False) -> Any:
        """What a function of JavaScript, given document and window, returns of a page so many pixels wide."""
        frame = self._folder / "frame.html"
        text = html.escape(page.read_text(encoding="utf-8"))
        frame.write_text(FRAME.format(page=text, width=width, ask=question), encoding="utf-8")
        dumped = self._run(frame, "--dump-dom", "--window-size=1400,1000", dark=dark)
        return json.loads(html.unescape(dumped.partition('<pre id="found">')[2].partition("</pre>")[0]))

    def _run(self, page: Path, *arguments: str, dark: bool) -> str:
        command = [
            self._program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--hide-scrollbars",
            f"--user-data-dir={self._folder / 'profile'}", *(["--force-dark-mode"] if dark else []), *arguments,
            page.absolute().as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


def chromium(folder: Path) -> Browser:
    """The one that is here, or Debian's; skips with the reason where there is none."""
    if shutil.which("chromium") is None:
        if shutil.which("apt-get") is None or os.geteuid() != 0:
            pytest.skip("chromium is not here, and there is no apt-get with root's rights to install it")
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in INSTALL:
            try:
                done = subprocess.run(
                    command.split(), capture_output=True, text=True, env=quiet, timeout=INSTALL_TIMEOUT_S, check=False
                )
            except subprocess.TimeoutExpired:
                pytest.skip(f"chromium is not here, and {command} does not end within {INSTALL_TIMEOUT_S} s")
        if done.returncode:
            pytest.skip(f"chromium is not here, and apt-get cannot install it: {done.stderr.strip()[-300:]}")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("apt-get has installed no program called chromium")
    return Browser(program, folder)
