"""A browser that opens pages from files and remembers what they complained about."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
#: The table that is looked at unless another is named.
TABLE = "#task-pointcloud"


class Tab:
    """A page that remembers what it asked for and complained about."""

    def __init__(self, context: Any, folder: Path) -> None:
        self.folder = folder
        self.page = context.new_page()
        self.foreign: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda r: self.foreign.append(r.url) if not r.url.startswith(("file:", "blob:")) else 0)
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else 0)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))

    def open(self, path: str, hash: str = "") -> Any:
        self.page.goto("about:blank")
        self.page.goto(f"{(self.folder / path).as_uri()}{hash}")
        self.page.wait_for_function("document.documentElement.classList.contains('ready')")
        return self.page

    def rows(self, table: str = TABLE) -> list[list[str]]:
        return self.page.eval_on_selector_all(
            f"{table} tbody tr", "rows => rows.map(r => [...r.cells].map(c => c.textContent.trim()))"
        )

    def heads(self, table: str = TABLE) -> list[str]:
        return self.page.eval_on_selector_all(f"{table} thead th", "ths => ths.map(t => t.dataset.key)")

    def column(self, key: str, table: str = TABLE) -> list[str]:
        index = self.heads(table).index(key)
        return [row[index] for row in self.rows(table)]


def axe() -> str | None:
    """The accessibility checker, from wherever a package brings it; the site does not."""
    for module in ("axe_playwright_python", "axe_core_python"):
        spec = importlib.util.find_spec(module)
        if spec and spec.origin:
            return (Path(spec.origin).parent / "axe.min.js").read_text(encoding="utf-8")
    file = os.environ.get("AXE_CORE")
    return Path(file).read_text(encoding="utf-8") if file else None


def save(page: Any, format: str) -> str:
    with page.expect_download() as download:
        page.locator(f".table button[data-format={format}]:not([data-to])").first.click()
    return Path(download.value.path()).read_bytes().decode()
