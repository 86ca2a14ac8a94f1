#!/usr/bin/env python3
"""End-to-end tests of the pages of `serve` and `evaluate` in a browser; screenshots go to a folder, to be
looked at.

    page.py [--model FOLDER] [--report FOLDER/report.html] [--out screenshots]

Needs `pip install playwright`, a Chromium (`apt-get install chromium`) and `cargo build --release`. The model
has two labels, one of them POSITIVE.
"""

import argparse
import csv
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model")
parser.add_argument("--report", type=Path)
parser.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()))
parser.add_argument("--warpfit", default=str(Path(__file__).parents[1] / "target/release/warpfit"))
parser.add_argument("--chromium", default="/usr/bin/chromium")
args = parser.parse_args()
args.out.mkdir(exist_ok=True)

SCRIPT = "<img src=x onerror=\"document.title='broken in'\"><script>document.title='broken in'</script>, =1+1 \"quoted\""


def serve(*flags):
    process = subprocess.Popen([args.warpfit, "serve", "--model", args.model, "--port", "0", *flags], stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().split()[-1]


def check_one(page):
    page.keyboard.type("A wonderful film, and a long one.")  # the text has the focus
    page.keyboard.press("Control+Enter")
    expect(page.locator("#scores li")).to_have_count(2)
    expect(page.locator("#about")).to_contain_text("tokens")
    scores = [float(text.split()[0]) for text in page.locator("#scores .number").all_inner_texts()]
    assert scores[0] >= scores[1] and abs(sum(scores) - 100) < 0.11, scores
    stars = page.locator("#stars").get_attribute("aria-label")
    positive = scores[0] if page.locator("#label").inner_text() == "POSITIVE" else scores[1]
    assert abs(int(stars.split()[0]) - max(1, positive / 10)) < 0.51, (stars, positive)
    expect(page.locator("#said")).to_contain_text(stars)
    page.wait_for_timeout(600)  # the bars have grown
    width = page.locator("#scores .bar i").first.evaluate("i => i.offsetWidth / i.parentElement.offsetWidth")
    assert abs(100 * width - scores[0]) < 1, (width, scores)


def check_keyboard(page):
    page.locator("#text").focus()
    order = []
    for _ in range(8):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert order[:3] == ["go", "clear", "lines"] and order[-1] == "choose", order
    page.locator("#examples button").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#one")).to_be_visible()


def check_script_is_text(page):
    page.locator("#text").fill(f"{SCRIPT}\n\nanother line\n{SCRIPT}")
    page.get_by_label("Each line is a text").check()
    page.get_by_role("button", name="Classify").click()
    expect(page.locator("#rows tr")).to_have_count(3)
    assert page.locator("#rows td").first.inner_text() == SCRIPT
    assert page.title() == "warpfit" and page.locator("#rows img").count() == 0


def check_file(page):
    texts = ["plain", 'with "quotes", commas', "two\nlines", SCRIPT, "=1+1", "+1", "-1", "@a", "\ttab", ""] + [f"text {i}" for i in range(300)]
    with tempfile.NamedTemporaryFile("w", suffix=".csv", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "Review"])
        writer.writerows(enumerate(texts))
        file.flush()
        page.locator("#file").set_input_files(file.name)
        expect(page.locator("#save")).to_be_visible(timeout=120_000)
    assert page.locator("#rows tr").count() == 200
    with page.expect_download() as download:
        page.locator("#save").click()
    with open(download.value.path(), newline="") as file:
        rows = list(csv.DictReader(file))
    inert = [f"'{text}" if text[:1] in list("=+-@\t\r") else text for text in texts]
    assert [row["text"] for row in rows] == inert
    assert all(row["label"] and 0 <= float(row["score"]) <= 1 and 1 <= int(row["stars"]) <= 10 for row in rows)


def check_faults(page):
    page.locator("#text").fill("  ")
    page.get_by_role("button", name="Classify").click()
    expect(page.get_by_role("alert")).to_contain_text("no text yet")
    with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        print("a,b\n1,2", file=file, flush=True)
        page.locator("#file").set_input_files(file.name)
        expect(page.get_by_role("alert")).to_contain_text("has the columns a, b")


def check_key(context):
    process, address = serve("--api-key", "sesame")
    page = context.new_page()
    page.goto(address)
    expect(page.get_by_role("alert")).to_contain_text("asks for a key")
    page.get_by_label("Key", exact=True).fill("sesame")
    page.locator("#text").fill("a text")
    page.get_by_role("button", name="Classify").click()
    expect(page.locator("#one")).to_be_visible()
    expect(page.locator("#model")).to_contain_text("reads up to")
    page.close()
    process.terminate()
    assert process.wait() == 0


def check_serve(page, shoot):
    expect(page.locator("#model")).to_contain_text("reads up to")
    shoot("empty")
    check_one(page)
    shoot("one")
    check_keyboard(page)
    check_script_is_text(page)
    shoot("many")
    check_file(page)
    check_faults(page)
    shoot("fault")


def check_report(page, shoot):
    shoot("report")
    rows, said = page.locator("#errors tbody tr:visible"), page.locator(".tools output")
    every = rows.count()
    box = rows.first.locator("td").last.bounding_box()
    assert box["x"] + box["width"] <= page.viewport_size["width"], "the texts cannot be seen"
    cells = lambda column: rows.locator(f"td:nth-child({column})").all_text_contents()
    heads = page.locator("#errors th button")
    names = heads.all_text_contents()
    for column in [names.index("loss"), len(names) - 1]:
        values = [float(text) if names[column] == "loss" else text for text in cells(column + 1)]
        collated = "texts => texts.toSorted((a, b) => typeof a === 'number' ? a - b : a.localeCompare(b))"
        heads.nth(column).click()
        rising = [float(text) if names[column] == "loss" else text for text in cells(column + 1)]
        assert rising == page.evaluate(collated, values) and rising != values, names[column]
        heads.nth(column).press("Enter")  # the keyboard sorts too
        assert cells(column + 1)[0] != cells(column + 1)[-1] and page.locator("[aria-sort=descending]").count() == 1
    page.get_by_label("only wrong ones").check()
    wrong = rows.count()
    assert 0 < wrong < every and all(a != b for a, b in zip(cells(1), cells(2)))
    assert said.text_content() == f"{wrong} of {every}"
    word = max(cells(len(names))[0].split(), key=len)
    page.get_by_label("Only rows with").fill(word.upper())
    assert 0 < rows.count() < wrong and all(word.lower() in text.lower() for text in rows.all_text_contents())
    shoot("report-filtered")
    page.get_by_label("Only rows with").fill("no text has this")
    assert rows.count() == 0
    page.get_by_label("Only rows with").fill("")
    page.get_by_label("only wrong ones").uncheck()
    assert rows.count() == every
    if folded := page.locator("#errors details").all():
        folded[0].locator("summary").click()
        assert folded[0].evaluate("details => details.open")
    for figure in page.locator("figure").all():
        assert figure.evaluate("figure => figure.scrollWidth - figure.clientWidth") == 0, figure.inner_text()


def check(browser, name, address, check_page):
    """Light, dark and on a phone: without a warning, a request elsewhere, or a page wider than the screen."""
    for look, options in {
        "light": {"color_scheme": "light", "viewport": {"width": 1200, "height": 900}},
        "dark": {"color_scheme": "dark", "viewport": {"width": 1200, "height": 900}},
        "phone": {"color_scheme": "light", "viewport": {"width": 360, "height": 740}, "device_scale_factor": 2},
    }.items():
        context = browser.new_context(**options)
        page = context.new_page()
        problems = []
        page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: problems.append(request.url) if not request.url.startswith((address, "data:", "blob:")) else None)
        page.goto(address)
        check_page(page, lambda what: page.screenshot(path=args.out / f"{look}-{what}.png", full_page=True))
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{look}: {wide} px too wide"
        assert not problems, problems
        context.close()
        print(f"{name}, {look}: passed")


with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
    if args.model:
        # A copy with texts of its own.
        model = tempfile.mkdtemp()
        shutil.copytree(args.model, model, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoint-*", "earlier-run-*"))
        args.model = model
        Path(model, "examples.json").write_text(json.dumps([f"example {i}" for i in range(4)]))
        process, address = serve()
        check(browser, "serve", address, check_serve)
        check_key(browser.new_context())
        print("key: passed")
        process.terminate()
        assert process.wait() == 0
    if args.report:
        check(browser, "report", args.report.resolve().as_uri(), check_report)
    browser.close()
print(f"screenshots: {args.out}")
