"""Looks at the page of a run that goes on, with Chromium, as a person would: what it shows, how it is used, that it holds.

Arguments: the page's address, and a folder for pictures where any are wanted.
"""

import json
import pathlib
import re
import sys
import urllib.request

from playwright.sync_api import expect, sync_playwright

BASE = sys.argv[1].rstrip("/") + "/"
PICTURES = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else None
SECTIONS = ["overview", "workers", "rounds", "ledger", "leaderboard", "playground", "samples", "reports"]
EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"

complaints = []


def api(path):
    with urllib.request.urlopen(BASE + path) as answer:
        return json.load(answer)


def digits(text):
    """A text without the spaces between thousands."""
    return re.sub(r"\s", "", text)


def watch(page):
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda asked: complaints.append(f"asked {asked.url}") if not asked.url.startswith(BASE) else None)
    return page


def picture(page, name):
    if PICTURES:
        page.screenshot(path=PICTURES / f"{name}.png")


def go(page, section):
    page.goto(BASE + "#" + section)
    expect(page.locator(f"main > section#{section.split('/')[0]}")).to_be_visible()


def text(page, selector):
    return page.locator(selector).inner_text()


def row_of(page, table, first):
    """The cells of the row that begins with this."""
    cells = """([table, first]) => [...document.querySelectorAll(`#${table} tbody tr`)]
        .map((row) => [...row.children].map((cell) => cell.innerText)).find((row) => row[0] === first)"""
    found = page.wait_for_function(cells, arg=[table, str(first)], timeout=5000)
    return [digits(cell) for cell in found.json_value()]


def loads_and_goes_on_by_itself(page):
    page.goto(BASE)
    expect(page.locator("#live-text")).to_have_text("Live")
    expect(page.locator("#round")).to_have_text(re.compile(r"\d"))
    before = int(digits(text(page, "#round")))
    page.wait_for_function("before => Number(document.getElementById('round').textContent.replace(/\\s/g, '')) > before + 1", arg=before)
    expect(page.locator("#events li").first).to_be_visible()
    expect(page.locator("#chart-loss canvas")).to_be_visible()
    assert "newest: validation" in page.locator("#chart-loss [role=img]").get_attribute("aria-label")


def shows_what_the_server_says(page):
    # Both move on, so they are compared when nothing happened between two looks at the server.
    for _ in range(100):
        before = [api("hydra/v1/status"), api("hydra/v1/ledger")]
        page.wait_for_timeout(150)
        shown = {name: digits(text(page, f"#{name}")) for name in ["round", "loss", "tokens", "swarm", "supply", "tasks", "phase"]}
        after = [api("hydra/v1/status"), api("hydra/v1/ledger")]
        same = all(before[0][name] == after[0][name] for name in ["round", "closed", "accepted", "loss", "workers_seen"])
        if same and before[1] == after[1] and shown["round"] == str(after[0]["round"]):
            break
    else:
        raise AssertionError("the page lags behind")
    status, books = after
    supply = f"{int(books['supply']) / 1e6:.2f}"
    assert (shown["loss"], shown["tokens"]) == (f"{status['loss']:.4f}", str(status["tokens"])), (shown, status)
    assert shown["supply"] == supply, (shown, books)
    assert shown["tasks"] == f"{status['accepted']}/{status['tasks']}", (shown, status)
    assert shown["phase"] == ("Aggregating" if status["closed"] else "Training")


def rounds_and_workers_are_those_of_the_server(page):
    go(page, "rounds")
    page.locator("#rounds-table tbody tr").nth(2).wait_for()
    for _ in range(100):
        known = api("hydra/v1/rounds?most=3")["rounds"]
        if len(known) > 2 and known[2]["loss"] is not None:
            break
        page.wait_for_timeout(200)
    page.wait_for_timeout(1500)
    while page.locator("#rounds-all .pager button").nth(1).is_enabled():
        page.locator("#rounds-all .pager button").nth(1).click()
    row = row_of(page, "rounds-table", "1")
    assert row[1] == known[1]["base"][:8] and row[4] == str(known[1]["accepted"]), row
    assert row[7] == f"{known[1]['train_loss']:.4f}" and row[8] == f"{known[2]['loss']:.4f}", (row, known)
    go(page, "rounds/1")
    detail = api("hydra/v1/rounds/1")
    expect(page.locator("#rounds-one .facts")).to_contain_text(detail["made"])
    for task in detail["tasks"]:
        row = row_of(page, "round-tasks", task["index"])
        assert row[1] == task["worker"][:8] and row[5] == f"{task['loss_last']:.4f}", (row, task)
    go(page, "workers")
    workers = api("hydra/v1/workers")["workers"]
    expect(page.locator("#workers-count")).to_have_text(f"{len(workers)} of {len(workers)}")
    page.locator("#workers-find").fill(workers[0]["key"][:12])
    expect(page.locator("#workers-count")).to_have_text(f"1 of {len(workers)}")
    page.locator("#workers-find").fill("")
    page.get_by_role("button", name="Accepted").click()
    expect(page.locator("#workers-table th").nth(2)).to_have_attribute("aria-sort", "descending")
    go(page, "leaderboard")
    expect(page.locator("#leaderboard-table tbody tr").first).to_contain_text("%")


def a_proof_is_checked_here_and_a_tampered_one_is_refused(page):
    go(page, "ledger")
    expect(page.locator("#transfers-table tbody tr").first).to_contain_text("emission")
    page.locator("#proof-name").fill("1")
    page.get_by_role("button", name="Fetch and check").click()
    verdict = page.locator("#proof-verdict")
    expect(verdict).to_have_text("✓ Transfer 1 is in the ledger.")
    honest = page.locator("#proof-text").input_value()
    picture(page, "ledger")
    proof = json.loads(honest)
    other = "0" * 64
    key = api("hydra/v1/ledger")["verifiers"][0]

    def but(change):
        altered = json.loads(honest)
        change(altered)
        return altered

    flipped = proof["head"]["signature"][:-2] + ("00" if proof["head"]["signature"][-2:] != "00" else "01")
    body = proof["head"]["body"]
    changed = body[:10] + ("A" if body[10] != "A" else "B") + body[11:]
    for altered in [
        but(lambda it: it["transfer"].update(amount=str(int(it["transfer"]["amount"]) + 1))),
        but(lambda it: it["transfer"].update(credit="wallet:" + key)),
        but(lambda it: it["transfer"]["purpose"]["pay"].update(round=7)),
        but(lambda it: it.update(sequence=2)),
        but(lambda it: it.update(at=it["at"] + 1)),
        but(lambda it: it["path"].__setitem__(0, other)),
        but(lambda it: it["path"].pop()),
        but(lambda it: it["head"].update(signature=flipped)),
        but(lambda it: it["head"].update(body=changed)),
        but(lambda it: it["head"].update(signer=key)),
        {"proof": "nothing"},
    ]:
        page.locator("#proof-text").fill(json.dumps(altered))
        page.get_by_role("button", name="Check this text").click()
        expect(verdict).to_have_text(re.compile("^✗ This proves nothing"))
        assert "bad" in verdict.get_attribute("class")
        page.locator("#proof-text").fill(honest)
        page.get_by_role("button", name="Check this text").click()
        expect(verdict).to_have_text("✓ Transfer 1 is in the ledger.")
    page.get_by_role("button", name="only grew").click()
    expect(verdict).to_have_text(re.compile("^✓ The ledger of"))
    page.locator("#proof-name").fill("999999999")
    page.get_by_role("button", name="Fetch and check").click()
    expect(verdict).to_have_text(re.compile("^✗ There is no such proof"))
    # The server's own answer.
    complaints[:] = [said for said in complaints if "404" not in said]


def the_newest_model_writes(page):
    go(page, "playground")
    expect(page.locator("#ask-price")).to_contain_text("at most")
    expect(page.locator("#ask-price")).to_contain_text("free tokens are left")
    page.locator("#ask-text").fill("to be")
    page.locator("#ask-most").fill("8")
    page.get_by_role("button", name="Write").click()
    expect(page.locator("#ask-status")).to_contain_text("8 tokens in")
    assert text(page, "#ask-output").startswith("to be")
    page.locator("#ask-key").fill("hydra-secret")
    expect(page.locator("#ask-price")).to_contain_text("not known here")
    complaints[:] = [said for said in complaints if "401" not in said]
    kept = "() => Object.values(localStorage).join()"
    assert "hydra-secret" not in page.evaluate(kept), "kept without being asked"
    page.locator("#ask-keep").check()
    assert "hydra-secret" in page.evaluate(kept)
    page.locator("#ask-keep").uncheck()
    assert "hydra-secret" not in page.evaluate(kept)
    go(page, "samples")
    expect(page.locator("#samples-list pre").first).to_be_visible()


def keys_are_enough(page):
    page.goto("about:blank")
    page.goto(BASE)
    expect(page.locator("#live-text")).to_have_text("Live")
    focused = "() => document.activeElement.id || document.activeElement.textContent"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate(focused) == "main"
    page.goto("about:blank")
    page.goto(BASE)
    expect(page.locator("#live-text")).to_have_text("Live")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate(focused) == "Rounds":
            break
    ring = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid", "what has the focus is not marked"
    page.keyboard.press("Enter")
    expect(page.locator("#rounds")).to_be_visible()
    expect(page.locator("#nav a[aria-current=page]")).to_have_text("Rounds")
    assert page.title() == "Rounds – Hydra"
    # Rows change while the run goes on, and what has the focus keeps it.
    page.locator("#rounds-table tbody a").nth(1).focus()
    shown = text(page, "#rounds-table tbody tr:first-child td:first-child")
    page.wait_for_function("shown => document.querySelector('#rounds-table td').textContent !== shown", arg=shown)
    assert page.evaluate("() => document.activeElement.localName") == "a"


def everything_has_a_name(page):
    nameless = """() => [...document.querySelectorAll("input, select, textarea, button, a, progress, [role=region], [role=img]")]
        .filter((node) => node.checkVisibility())
        .filter((node) => !(node.labels?.length || node.textContent.trim() || node.getAttribute("aria-label")))
        .map((node) => node.outerHTML)"""
    for section in SECTIONS:
        go(page, section)
        page.wait_for_timeout(300)
        assert page.evaluate(nameless) == [], section
        assert page.locator("h1:visible").count() == 1, section


def colours(browser):
    paper = "() => getComputedStyle(document.body).backgroundColor"
    seen = {}
    for scheme in ["light", "dark"]:
        context = browser.new_context(color_scheme=scheme, viewport={"width": 1180, "height": 860})
        page = watch(context.new_page())
        page.goto(BASE)
        expect(page.locator("#chart-loss canvas")).to_be_visible()
        seen[scheme] = page.evaluate(paper)
        page.wait_for_timeout(1500 if PICTURES else 0)
        picture(page, f"overview-{scheme}")
        context.close()
    assert seen["light"] != seen["dark"]
    context = browser.new_context(color_scheme="light")
    page = watch(context.new_page())
    page.goto(BASE)
    for name, colour in [("light", seen["light"]), ("dark", seen["dark"])]:
        page.locator("#theme").press("Space")
        expect(page.locator("#theme")).to_have_text(f"Theme: {name}")
        assert page.evaluate(paper) == colour, name
    page.reload()
    expect(page.locator("#theme")).to_have_text("Theme: dark")
    assert page.evaluate(paper) == seen["dark"], "the choice is kept"
    context.close()


def fits_a_phone(browser):
    context = browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page = watch(context.new_page())
    for section in SECTIONS + ["rounds/1"]:
        go(page, section)
        page.wait_for_timeout(500)
        wide = page.evaluate("() => document.documentElement.scrollWidth")
        assert wide <= 360, f"{section} is {wide} px wide"
    go(page, "overview")
    page.wait_for_timeout(700)
    picture(page, "phone")
    context.close()


def what_others_write_stays_text(browser):
    context = browser.new_context()
    page = context.new_page()
    digest = "ab" * 32
    sample = {"round": 1, "model": digest, "text": EVIL}
    report = {"name": "x", "scenario": EVIL, "seed": 1, "state_hash": digest, "failures": [EVIL], "rounds": 1, "loss": 1.0}
    page.route("**/hydra/v1/samples", lambda route: route.fulfill(json={"samples": [sample]}))
    page.route("**/hydra/v1/reports", lambda route: route.fulfill(json={"reports": [report]}))
    go(page, "samples")
    expect(page.locator("#samples-list pre")).to_have_text(EVIL)
    go(page, "reports")
    expect(page.locator("#reports-table tbody")).to_contain_text(EVIL)
    assert page.locator("main img, main script").count() == 0 and "owned" not in page.title()
    # And if a script of the page tried to make markup of it, the browser would refuse.
    tries = "text => { try { document.body.insertAdjacentHTML('beforeend', text); return 'done' } catch (error) { return error.name } }"
    assert page.evaluate(tries, EVIL) == "TypeError"
    context.close()


def what_a_ledger_paid_late_is_seen(browser):
    context = browser.new_context()
    page = watch(context.new_page())
    late = api("hydra/v1/status")["round"] - 1
    away = True

    def rounds(route):
        answer = api(route.request.url.removeprefix(BASE))
        for one in answer["rounds"]:
            one["paid"] = "0" if away and one["round"] == late else one["paid"]
        route.fulfill(json=answer)

    page.route("**/hydra/v1/rounds?*", rounds)
    go(page, "rounds")
    assert row_of(page, "rounds-table", late)[10] == "–"
    # Several rounds later it is there again.
    while api("hydra/v1/status")["round"] < late + 5:
        page.wait_for_timeout(100)
    assert row_of(page, "rounds-table", late)[10] == "–"
    away = False
    page.wait_for_function("""late => [...document.querySelectorAll("#rounds-table tbody tr")]
        .some((row) => row.children[0].innerText === late && Number(row.children[10].innerText) > 0)""", arg=str(late))
    context.close()


def a_browser_that_keeps_nothing_checks_proofs_too(browser):
    context = browser.new_context()
    context.add_init_script("""Object.defineProperty(window, "localStorage",
        { get() { throw new DOMException("nothing is kept", "SecurityError") } })""")
    page = watch(context.new_page())
    go(page, "ledger")
    verdict = page.locator("#proof-verdict")
    page.locator("#proof-name").fill("1")
    page.get_by_role("button", name="Fetch and check").click()
    expect(verdict).to_have_text("✓ Transfer 1 is in the ledger.")
    page.get_by_role("button", name="only grew").click()
    expect(verdict).to_have_text(re.compile("^✓ The ledger of"))
    page.locator("#theme").press("Space")
    expect(page.locator("#theme")).to_have_text("Theme: light")
    go(page, "playground")
    page.locator("#ask-keep").check()
    context.close()


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
    page = watch(browser.new_context(viewport={"width": 1180, "height": 860}).new_page())
    for step in [
        loads_and_goes_on_by_itself,
        shows_what_the_server_says,
        rounds_and_workers_are_those_of_the_server,
        a_proof_is_checked_here_and_a_tampered_one_is_refused,
        the_newest_model_writes,
        keys_are_enough,
        everything_has_a_name,
    ]:
        step(page)
    colours(browser)
    fits_a_phone(browser)
    what_a_ledger_paid_late_is_seen(browser)
    a_browser_that_keeps_nothing_checks_proofs_too(browser)
    assert complaints == [], complaints
    what_others_write_stays_text(browser)
    browser.close()
print("the page holds")
