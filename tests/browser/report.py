"""Looks at the report of a simulation with Chromium, opened from its folder: that it shows a run and needs nothing else.

Arguments: the report, and a folder for a picture where one is wanted.
"""

import pathlib
import sys

from playwright.sync_api import expect, sync_playwright

REPORT = pathlib.Path(sys.argv[1]).resolve().as_uri()
PICTURES = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else None

complaints = []
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
    for scheme in ["light", "dark"]:
        page = browser.new_page(viewport={"width": 420, "height": 900}, color_scheme=scheme)
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: complaints.append(f"asked {asked.url}") if asked.url != REPORT else None)
        page.goto(REPORT)
        expect(page.locator("h1")).to_be_visible()
        expect(page.locator("svg")).to_have_count(4)
        assert all(line.bounding_box()["width"] > 50 for line in page.locator("svg polyline").all()), "a chart is empty"
        assert page.locator("svg rect").count() >= 1, "no fault is shaded"
        wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        assert not wide, "a telephone has to scroll sideways"
        assert page.locator("text=cargo sim").count() >= 1, "it does not say how to play it again"
        if PICTURES:
            page.screenshot(path=PICTURES / f"report-{scheme}.png", full_page=True)
    browser.close()
assert not complaints, complaints
