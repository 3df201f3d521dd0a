"""A real browser without a window, for pages: pictures, a printed page, and what a page says of itself.

It must not know what a page shows. The one idea: Chromium is started for each question, with a profile of its own, in
a network namespace where nothing can be reached.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from html import unescape
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium-headless-shell") or shutil.which("chromium")

#: Reads what is asked of a page, and leaves it where `--dump-dom` shows it.
_PROBE = """
<pre id="probe"></pre><script>
addEventListener("load", () => {
  const page = document.getElementById("page"), seen = page.contentDocument, root = seen.scrollingElement;
  document.getElementById("probe").textContent = JSON.stringify({
    title: seen.title, wide: root.scrollWidth, room: page.clientWidth, text: seen.body.innerText,
    scripts: seen.querySelectorAll("script").length, images: seen.querySelectorAll("img").length,
    headings: [...seen.querySelectorAll("h1,h2,h3")].map(each => each.tagName + " " + each.textContent),
    tables: [...seen.querySelectorAll("table")].map(each => each.tBodies[0].rows.length),
    named: [...seen.querySelectorAll("section")].every(
      each => seen.getElementById(each.getAttribute("aria-labelledby"))),
  });
});
</script>
"""


def _run(*arguments: str) -> str:
    assert PROGRAM
    with tempfile.TemporaryDirectory() as profile:
        # Pages of files may look into each other only when told so.
        usual = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files")
        apart = ["unshare", "--net"] if os.geteuid() == 0 else []
        command = [*apart, PROGRAM, *usual, f"--user-data-dir={profile}", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def picture(page: Path, to: Path, width: int, height: int = 3000, *, dark: bool = False) -> bytes:
    """A screenshot as PNG."""
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    _run(scheme, f"--window-size={width},{height}", f"--screenshot={to}", page.as_uri())
    return to.read_bytes()


def printed(page: Path, to: Path) -> bytes:
    """The page as a printer gets it, as PDF."""
    _run("--no-pdf-header-footer", f"--print-to-pdf={to}", page.as_uri())
    return to.read_bytes()


def seen(page: Path, width: int) -> dict[str, Any]:
    """What a page of this width says: its title, text, headings, rows of tables, how wide it is and may be."""
    frame = f'<iframe id="page" src="{page.name}" style="width:{width}px;height:900px;border:0"></iframe>'
    probe = page.with_name("probe.html")
    probe.write_text(f'<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">{frame}{_PROBE}')
    dumped = _run(f"--window-size={width + 200},1000", "--virtual-time-budget=5000", "--dump-dom", probe.as_uri())
    found = re.search(r'<pre id="probe">(.*?)</pre>', dumped, re.DOTALL)
    assert found, dumped
    told: dict[str, Any] = json.loads(unescape(found[1]))
    return told
