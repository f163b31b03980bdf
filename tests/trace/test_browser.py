"""The trace page in a real headless browser, from file://.

Needs the extra `browser` and a Chromium (`LEAPJAX_CHROMIUM`, or one on the PATH).
"""

import os
import re
import shutil

import pytest

from leapjax.trace import write
from tests.trace.pages import HOSTILE, edited, trace

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("LEAPJAX_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture
def page(browser, tmp_path):
    """The page of the small trace; what it asked for and complained of is in `.seen`."""
    path = tmp_path / "out.html"
    write(trace(), path)
    opened = browser.new_page()
    opened.seen = {"requests": [], "errors": []}
    opened.on("request", lambda r: opened.seen["requests"].append(r.url))
    opened.on("console", lambda m: opened.seen["errors"].append(m.text))
    opened.on("pageerror", lambda e: opened.seen["errors"].append(str(e)))
    opened.goto(path.as_uri())
    yield opened
    assert opened.seen == {"requests": [path.as_uri()], "errors": []}
    opened.close()


def test_an_edit_shows_from_its_step_on_and_is_told(browser, tmp_path):
    path = tmp_path / "edited.html"
    write(edited(), path)
    page = browser.new_page()
    page.goto(path.as_uri())
    box = page.locator(".token").first
    rows = [
        (0, None, "open", "", "0 edits"),
        (1, "seventeen", "anchor", "◆", "0 edits"),
        (2, "□", "edited special new", "◆✎", "1 edit"),
        (3, "□", "edited special", "◆✎", "1 edit"),
        (4, "5", "edited new", "◆✎", "3 edits"),
        (5, "5", "edited", "◆✎", "3 edits"),
    ]
    for step, text, look, mark, count in rows:
        page.locator("#step").fill(str(step))
        told = box.get_attribute("aria-label")
        if text is not None:
            assert box.locator(".text").inner_text().strip() == text, step
        classes = set(box.get_attribute("class").split())
        assert set(look.split()) <= classes | {"new"}, step
        assert ("edited" in classes, "new" in classes) == ("edited" in look, step in (1, 2, 4))
        assert box.locator(".mark").inner_text() == mark, step
        assert page.locator(".state").inner_text().endswith(f", {count}"), step
        assert ("edited in step 2: “seventeen” → “<eos>”" in told) == (step >= 2)
        assert ("edited in step 4: “<eos>” → “5”" in told) == (step >= 4)
    assert "✎edited: the token was" in page.locator("#legend").inner_text().replace("\n", "")
    page.close()


def texts(page, policy):
    """What stands in a policy's canvas; None where open."""
    boxes = page.locator(f'.run[aria-label="{policy}"] .token').all()
    return [
        None if "open" in b.get_attribute("class").split() else b.locator(".text").inner_text()
        for b in boxes
    ]


def test_the_slider_commits_tokens_in_their_order(page):
    want = {
        0: ([None] * 5, [None] * 5),
        1: ([None, " words", None, "□", None], [None, None, None, "□", None]),
        2: (["<b>two</b>", " words", ".", "□", "□"], [None, " other", None, "□", None]),
        3: (["<b>two</b>", " words", ".", "□", "□"], ["<b>two</b>", " other", "!", "□", "□"]),
    }
    slider = page.locator("#step")
    assert (slider.get_attribute("min"), slider.get_attribute("max")) == ("0", "3")
    for step in (3, 0, 1, 2, 1):
        slider.evaluate("(n, v) => { n.value = v; n.dispatchEvent(new Event('input')); }", step)
        assert (texts(page, "localleap"), texts(page, "greedy")) == want[step], step
        assert page.locator("#count").inner_text() == f"step {step} of 3"


def test_the_keyboard_alone_moves_through_steps_and_tokens(page):
    for key, step in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1)):
        page.keyboard.press(key)
        assert page.locator("#count").inner_text() == f"step {step} of 3", key
    page.keyboard.press("End")
    assert page.locator("#count").inner_text() == "step 3 of 3"
    page.locator("#step").focus()
    page.keyboard.press("ArrowLeft")  # the slider's own keys
    assert page.locator("#count").inner_text() == "step 2 of 3"
    page.locator("#speed").focus()
    page.keyboard.press("Tab")  # into the first canvas
    page.keyboard.press("ArrowRight")
    detail = page.locator("#detail").inner_text()
    assert re.search("position 2: “ words”, committed in step 1 .anchor.*0.950; greedy", detail)
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"
    assert page.locator("#count").inner_text() == "step 2 of 3"  # the arrows were the token's


def test_play_and_pause(page):
    page.locator("#speed").select_option("2")
    page.locator("#play").focus()
    page.keyboard.press("Enter")
    api.expect(page.locator("#count")).to_have_text("step 1 of 3")  # began anew
    page.keyboard.press("Enter")
    api.expect(page.locator("#play")).to_have_attribute("aria-label", "Play")
    assert page.locator("#count").inner_text() in ("step 1 of 3", "step 2 of 3")
    page.keyboard.press("Enter")
    api.expect(page.locator("#count")).to_have_text("step 3 of 3")
    assert page.locator("#play").get_attribute("aria-label") == "Play"  # it stopped at the end


def test_hover_tells_and_hostile_text_is_text(page):
    page.locator('.run[aria-label="localleap"] .token').first.hover()
    assert "“<b>two</b>”, committed in step 2" in page.locator("#detail").inner_text()
    page.locator('.run[aria-label="localleap"] .token').nth(2).hover()
    told = page.locator("#detail").inner_text()
    assert "“.”, seed: a block's first token" in told and "0.970; greedy has another" in told
    assert page.locator("#prompt").inner_text() == HOSTILE
    assert page.title() == "Decoding trace: tiny"
    assert page.locator("img, b b").count() == 0
    # 2 of greedy's 3 steps
    assert "2 steps, 33 % fewer than greedy’s 3" in page.locator(".run").first.inner_text()
    page.get_by_role("button", name="Prompt 2").click()
    assert page.locator("#prompt").inner_text() == "plain"


def test_the_policy_forbids_requests_and_foreign_script(page):
    asked = page.evaluate("fetch('https://example.org/').then(() => 'sent', () => 'refused')")
    assert asked == "refused"
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'),"
        "{textContent: 'document.title = 1'}))"
    )
    assert page.title() == "Decoding trace: tiny"
    told = page.seen["errors"]
    assert len(told) >= 2 and all("Content Security Policy" in e or "CSP" in e for e in told), told
    page.seen["errors"].clear()
    page.seen["requests"][:] = [r for r in page.seen["requests"] if r.startswith("file:")]
