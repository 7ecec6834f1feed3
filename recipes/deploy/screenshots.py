"""Pictures of the page for the docs: two pictures compared, one searched, at a desktop's and a phone's size.

python recipes/deploy/screenshots.py EXPORT GALLERY FIRST SECOND --out docs/images

Needs playwright and the system's chromium.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "service"))

from starting import service

SIZES = {"desktop": (1000, 1250), "phone": (390, 1400)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write ``page_desktop.png`` and ``page_phone.png``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("export", "gallery", "first", "second"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        process, host = service(Path(folder) / "log", options.export, "--gallery", options.gallery)
        try:
            browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for name, (width, height) in SIZES.items():
                page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=1)
                page.goto(f"http://{host}")
                page.set_input_files("#file-a", options.first)
                page.set_input_files("#file-b", options.second)
                expect(page.locator("#verdict")).to_contain_text("score", timeout=30_000)
                page.set_input_files("#file-search", options.second)
                expect(page.locator("#matches img").first).to_be_visible(timeout=30_000)
                expect(page.locator("body[aria-busy]")).to_have_count(0)
                page.wait_for_timeout(500)  # the small pictures of the list
                page.screenshot(path=options.out / f"page_{name}.png")
            browser.close()
        finally:
            process.terminate()
            process.wait(60)
    return 0


if __name__ == "__main__":
    sys.exit(main())
