"""The page as docs show it: ``python -m tests.screenshots`` makes docs/page-light.png and docs/page-dark.png."""

import sys

from playwright.sync_api import Browser, expect

from tests.support.labs import ROOT
from tests.support.pages import Served, chromium, page_of
from tests.support.patience import patient

SIZE = {"width": 1280, "height": 800}
TRAFFIC = (("anna", "wire", 1000), ("bert", "anna", 400), ("carl", "wire", 3000), ("dora", "carl", 1000))
"""Slow enough for the senders to sleep in between, so that the browser has the CPU it needs."""
HISTORY = "40"
"""Samples, a second each, that the charts have by then."""


def shoot(browser: Browser, served: Served, theme: str) -> None:
    """One theme."""
    page = browser.new_context(viewport=SIZE, color_scheme=theme).new_page()  # type: ignore[arg-type]
    page.goto(served.address, wait_until="commit")
    expect(page.locator("#chart-cpu .main-svg").first).to_be_visible(timeout=1000 * patient(60))
    expect(page.locator("body")).to_have_attribute("data-samples", HISTORY, timeout=1000 * patient(120))
    page.locator('.hop[data-hop="anna>dom0"]:visible').click()
    page.evaluate("() => document.activeElement.blur()")
    page.screenshot(path=ROOT / "docs" / f"page-{theme}.png")
    page.context.close()


def main() -> int:
    """See the module."""
    with page_of(ROOT / "topologies" / "web.toml") as served, chromium() as browser:
        for guest, to, pps in TRAFFIC:
            status, said = served.do("traffic", guest=guest, to=to, frame=1500, pps=pps)
            if status != 200:
                print(said["error"], file=sys.stderr)
                return 1
        for theme in ("light", "dark"):
            shoot(browser, served, theme)
    return 0


if __name__ == "__main__":
    sys.exit(main())
