"""Measures the page of a run that goes on: bytes, first paint, and what an update costs with a made-up list of a thousand
workers. Argument: the page's address. Needs what tests/browser/make makes."""

import statistics
import sys

from playwright.sync_api import sync_playwright

BASE = sys.argv[1].rstrip("/") + "/"
WORKERS = [
    {"key": f"{n * 2654435761 % 2**32:08x}" * 8, "accepted": n, "rejected": n % 7, "tokens": n * 23040, "pay": str(n * 1234567),
     "clean": n, "audited": n % 5, "found_false": 0, "banned": n % 97 == 0, "holds": n % 2, "seen": None}
    for n in range(1000)
]

with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
    paints, sizes = [], []
    for _ in range(9):
        context = browser.new_context(viewport={"width": 1180, "height": 860})
        page = context.new_page()
        page.goto(BASE)
        page.wait_for_selector("#chart-loss canvas")
        entries = "() => performance.getEntriesByType('paint').find((entry) => entry.name === 'first-contentful-paint').startTime"
        paints.append(page.evaluate(entries))
        sizes.append(page.evaluate("""() => performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation'))
            .filter((entry) => !entry.name.includes('/hydra/v1/')).reduce((sum, entry) => sum + entry.encodedBodySize, 0)"""))
        context.close()
    print(f"files for the overview: {sizes[0]} bytes")
    print(f"first contentful paint: median {statistics.median(paints):.0f} ms, from {min(paints):.0f} to {max(paints):.0f}")

    page = browser.new_context(viewport={"width": 1180, "height": 860}).new_page()
    calls = []

    def answer(route):
        calls.append(1)
        for worker in WORKERS:
            worker["tokens"] += 23040
        route.fulfill(json={"workers": WORKERS, "next": None})

    page.route("**/hydra/v1/workers*", answer)
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable")

    def spent():
        metrics = {one["name"]: one["value"] for one in devtools.send("Performance.getMetrics")["metrics"]}
        return {name: metrics[name] for name in ["TaskDuration", "ScriptDuration", "LayoutDuration", "RecalcStyleDuration"]}

    for section in ["overview", "workers", "leaderboard"]:
        page.goto(BASE + "#" + section)
        page.wait_for_timeout(4000)
        before, began = spent(), len(calls)
        page.wait_for_timeout(20000)
        cost = {name: value - before[name] for name, value in spent().items()}
        said = ", ".join(f"{name} {value / 20 * 1000:.1f} ms" for name, value in cost.items())
        print(f"{section}: a second of the page costs {said}; {len(calls) - began} lists of workers in 20 s")
    browser.close()
