"""The status page in a real browser, served by a real uvicorn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("selenium", reason="Selenium drives the browser")

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from lightrag_resilience.events import TokensUsed
from lightrag_resilience.integrations.status import page as page_module
from lightrag_resilience.testing.redis_server import RedisServer
from support.browser import DESK, PHONE, chromium, show_as
from support.status_app import TOKEN, StatusApp, status_app
from support.workers import workers

pytestmark = pytest.mark.once
T = TypeVar("T")
PATIENCE = 30.0  # seconds, on a busy machine
HOSTILE = "<img src=x onerror=\"document.title='broken in'\">"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium() as driver:
        yield driver


@pytest.fixture
def app(browser: Chrome) -> Iterator[StatusApp]:
    with status_app() as app:
        yield app
        browser.get("about:blank")  # or the server's end waits for it


@pytest.fixture
def seen(browser: Chrome, app: StatusApp) -> Page:
    app.call("llm.openai", times=3)
    return Page(browser, app)


class Page:
    """What a person sees and does."""

    def __init__(self, driver: Chrome, app: StatusApp, size: tuple[int, int] = DESK) -> None:
        self.driver = driver
        show_as(driver, size)
        self.complaints()
        driver.get(app.url)
        driver.execute_script("sessionStorage.clear()")
        self.until(lambda: "Live" in self.text("#connection"))

    def until(self, condition: Callable[[], T]) -> T:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if found := condition():
                    return found
            except StaleElementReferenceException:
                pass
            assert time.monotonic() < deadline, self.text("body")
            time.sleep(0.02)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.one(selector).text

    def row(self, name: str) -> str:
        """The text of a dependency's row; empty where there is none."""
        for row in self.driver.find_elements(By.CSS_SELECTOR, ".row"):
            if row.find_element(By.CSS_SELECTOR, ".name").text == name:
                return row.text
        return ""

    def run(self, script: str) -> Any:
        return self.driver.execute_script(f"return {script}")

    def ask_to(self, what: str, name: str) -> None:
        self.one(f"[aria-label='{what} {name}']").click()
        self.until(lambda: self.run("document.getElementById('dialog').open"))

    def fill_in(self, *, token: str = "", reason: str = "") -> None:
        self.one("#reason").send_keys(reason)
        self.one("#token").send_keys(token)
        self.one("#submit").click()

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def has_focus(self, selector: str) -> bool:
        return bool(self.run(f"document.activeElement === document.querySelector('{selector}')"))

    def complaints(self) -> list[str]:
        """Errors on the browser's console, such as a violation of the policy; not its network's."""
        log: Any = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in log if entry["source"] != "network"]


def test_the_page_shows_a_change_without_reloading(
    seen: Page, app: StatusApp, record_property: Callable[[str, object], None]
) -> None:
    assert seen.text("#sentence") == "All is well: the only dependency works."
    assert seen.driver.title == "All well - Resilience"
    seen.driver.execute_script(
        "new MutationObserver(() => { window.changedAt ??= Date.now(); })"
        ".observe(document.getElementById('sentence'), {childList: true, characterData: true,"
        " subtree: true});"
    )
    app.call("llm.openai", times=5, fails=True)
    began = time.time()
    app.call("llm.openai", fails=True)
    seen.until(lambda: "has been down since" in seen.text("#sentence"))
    took = seen.run("window.changedAt") / 1000 - began
    record_property("seconds until it was seen", round(took, 3))
    print(f"seen after {took * 1000:.0f} ms")  # noqa: T201 - a measurement
    assert took < PATIENCE
    row = seen.row("llm.openai")
    assert "Down" in row
    why = "After 6 failures in a row, the last ConnectionRefusedError. Next probe in"
    assert why in row
    assert why in seen.text("#why")
    assert "ConnectionRefusedError, may pass by itself" in row
    assert "llm.openai went down" in seen.text("#changes")
    assert seen.driver.title == "1 down: llm.openai - Resilience"
    app.guards.get("llm.openai").breaker.close("after its probes succeeded")
    seen.until(lambda: "All is well" in seen.text("#sentence"))
    assert "llm.openai recovered" in seen.text("#changes")
    assert seen.complaints() == []


def test_the_page_counts_down_to_the_next_probe(seen: Page, app: StatusApp) -> None:
    app.guards.get("llm.openai").breaker.open("by Ada: they migrate", open_for=600)
    seen.until(lambda: "Isolated by hand" in seen.row("llm.openai"))
    first = seen.until(lambda: seen.text(".reason .next"))
    assert first.startswith("Ends in ")
    seen.until(lambda: seen.text(".reason .next") != first)


@pytest.mark.parametrize("token", ["", "not the right token at all", "no tökén"])
def test_the_dialog_rejects_a_wrong_token(seen: Page, app: StatusApp, token: str) -> None:
    seen.ask_to("Open", "llm.openai")
    seen.fill_in(token=token)
    problem = seen.until(lambda: seen.text("#problem"))
    assert "token" in problem.lower()
    assert seen.has_focus("#token")
    assert app.guards.get("llm.openai").breaker.state.value == "closed"
    seen.press(Keys.ESCAPE)
    seen.until(lambda: not seen.run("document.getElementById('dialog').open"))


def test_the_dialog_opens_and_closes_a_breaker_with_the_token(seen: Page, app: StatusApp) -> None:
    breaker = app.guards.get("llm.openai").breaker
    seen.ask_to("Open", "llm.openai")
    assert "to this process only" in seen.text("#dialog-text")
    seen.one("#keep").click()
    seen.fill_in(token=TOKEN, reason="they migrate")
    seen.until(lambda: "Isolated by hand" in seen.row("llm.openai"))
    assert breaker.snapshot().reason == "by the status page: they migrate"
    assert "llm.openai is open in this process" in seen.text("#toast")
    assert seen.run("Object.values(sessionStorage)") == [TOKEN]
    # The token was to be remembered, so that it is not asked for again.
    seen.ask_to("Close", "llm.openai")
    assert not seen.one("#token").is_displayed()
    seen.one("#submit").click()
    seen.until(lambda: "Working" in seen.row("llm.openai"))
    assert breaker.state.value == "closed"
    assert TOKEN not in seen.run("document.documentElement.outerHTML")


def test_the_page_keeps_the_token_only_on_request(seen: Page, app: StatusApp) -> None:
    seen.ask_to("Open", "llm.openai")
    seen.fill_in(token=TOKEN)
    seen.until(lambda: "Isolated by hand" in seen.row("llm.openai"))
    assert seen.run("sessionStorage.length + localStorage.length") == 0
    seen.ask_to("Close", "llm.openai")
    assert seen.one("#token").is_displayed()
    assert seen.one("#token").get_property("value") == ""


def test_markup_in_names_and_reasons_is_shown_as_text(seen: Page, app: StatusApp) -> None:
    app.call(HOSTILE, times=6, fails=True)
    app.guards.get("llm.openai").breaker.open(f"by {HOSTILE}")
    seen.until(lambda: seen.row(HOSTILE))
    seen.until(lambda: f"By {HOSTILE}" in seen.row("llm.openai"))
    assert HOSTILE in seen.text("#sentence")
    assert HOSTILE in seen.text("#changes")
    assert HOSTILE in seen.driver.title
    for button in seen.driver.find_elements(By.CSS_SELECTOR, "button"):
        if button.get_attribute("aria-label") == f"Close {HOSTILE}":
            button.click()
    assert seen.text("#dialog-title") == f"Close {HOSTILE}"
    seen.fill_in(token=TOKEN)
    seen.until(lambda: "Working" in seen.row(HOSTILE))
    assert HOSTILE in seen.text("#toast")
    assert seen.run("document.images.length") == 0
    assert seen.complaints() == []


def test_the_page_works_by_keyboard(seen: Page, app: StatusApp) -> None:
    seen.one("body").send_keys("")
    wanted = '[aria-label="Isolate llm.openai"]'
    for _ in range(10):
        seen.press(Keys.TAB)
        if seen.has_focus(wanted):
            break
    assert seen.has_focus(wanted)
    assert seen.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    seen.press(Keys.ENTER)
    seen.until(lambda: seen.has_focus("#minutes"))
    for _ in range(12):  # never behind the dialog
        seen.press(Keys.TAB)
        inside = "document.getElementById('dialog').contains(document.activeElement)"
        assert seen.run(f"{inside} || document.activeElement === document.body")
    seen.driver.execute_script("document.getElementById('minutes').focus()")
    seen.press(Keys.CONTROL + "a" + Keys.NULL, "15", Keys.TAB, "they migrate", Keys.TAB, TOKEN)
    seen.press(Keys.ENTER)
    seen.until(lambda: "Isolated by hand" in seen.row("llm.openai"))
    snapshot = app.guards.get("llm.openai").breaker.snapshot()
    assert snapshot.reason == "by the status page (isolated): they migrate"
    assert 800 < (snapshot.retry_after or 0) <= 900
    seen.until(lambda: not seen.run("document.getElementById('dialog').open"))
    seen.until(lambda: seen.run("document.querySelector('.acts').contains(document.activeElement)"))


def test_the_dialog_rejects_invalid_minutes(seen: Page, app: StatusApp) -> None:
    seen.ask_to("Isolate", "llm.openai")
    seen.one("#minutes").clear()
    seen.fill_in(token=TOKEN)
    assert seen.until(lambda: seen.text("#problem")) == "For how many minutes?"
    assert seen.has_focus("#minutes")
    seen.one("#minutes").send_keys("99999")
    seen.one("#submit").click()
    seen.until(lambda: "at most 10080" in seen.text("#problem"))
    assert app.guards.get("llm.openai").breaker.state.value == "closed"


def test_a_phone_shows_the_page_without_horizontal_scrolling(
    browser: Chrome, app: StatusApp
) -> None:
    app.call("llm." + "averylongnamewithoutanyspace" * 4, times=6, fails=True)
    app.call("llm.openai", times=3)
    page = Page(browser, app, PHONE)
    width = "document.documentElement.scrollWidth"
    page.until(lambda: page.row("llm.openai"))
    assert page.run(width) <= PHONE[0]
    page.ask_to("Isolate", "llm.openai")
    box = page.one("#dialog").rect
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE[0]
    assert page.run(width) <= PHONE[0]
    assert page.one("#submit").rect["height"] >= 40


def test_the_page_follows_the_preferred_colour_scheme(seen: Page) -> None:
    def brightness(of: str) -> float:
        colour = seen.run(f"getComputedStyle(document.body).{of}")
        parts = colour.partition("(")[2].rstrip(")").split(",")[:3]
        return sum(float(part) for part in parts) / 3

    shown = {}
    for scheme in ("light", "dark"):
        show_as(seen.driver, DESK, scheme)
        shown[scheme] = brightness("backgroundColor"), brightness("color")
    assert shown["light"][0] - shown["light"][1] > 150
    assert shown["dark"][1] - shown["dark"][0] > 150


def test_the_page_has_no_buttons_without_a_configured_token(browser: Chrome) -> None:
    with status_app(token=None) as app:
        app.call("llm.openai")
        page = Page(browser, app)
        page.until(lambda: page.row("llm.openai"))
        assert page.driver.find_elements(By.CSS_SELECTOR, "main button") == []


def test_a_lost_connection_is_shown_with_the_age_of_the_data(browser: Chrome) -> None:
    with status_app() as app:
        app.call("llm.openai")
        page = Page(browser, app)
        assert not page.one("#lost").is_displayed()
    lost = page.until(lambda: page.text("#lost"))
    assert "No connection to the server. The page shows data of " in lost
    assert page.text("#connection").startswith("Lost, data of ")


def test_the_page_polls_when_the_stream_is_buffered(
    seen: Page, app: StatusApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "_MOST_VIEWERS", 0)  # as long as this lasts
    monkeypatch.setattr(page_module, "_STREAM_LIFE", 1.0)
    seen.until(lambda: "pages are open" in seen.text("#lost"))
    monkeypatch.setattr(page_module, "_MOST_VIEWERS", 32)
    monkeypatch.setattr(page_module.StatusPage, "_send_events", nothing_comes)
    app.call("llm.openai", times=6, fails=True)
    seen.until(lambda: "Down" in seen.row("llm.openai"))
    seen.until(lambda: not seen.one("#lost").is_displayed())


async def nothing_comes(*_: object) -> None:
    """A stream that something on the way holds back."""


def test_the_page_shows_and_changes_breakers_of_other_processes(browser: Chrome) -> None:
    with (
        RedisServer() as redis,
        workers(redis.url, number=2) as two,
        status_app(REDIS_URL=redis.url) as app,
    ):
        two[0].request("call", times=3)
        page = Page(browser, app)
        page.until(lambda: "Working" in page.row("llm.made-up"))
        page.until(lambda: "2 workers on 1 machine" in page.text("#sharing"))
        two[0].request("behave", fails=5)
        two[0].request("call", times=5)
        began = time.monotonic()
        page.until(lambda: "llm.made-up has been down since" in page.text("#sentence"))
        print(f"of another process: {(time.monotonic() - began) * 1000:.0f} ms")  # noqa: T201
        page.ask_to("Close", "llm.made-up")
        assert "to all workers" in page.text("#dialog-text")
        page.fill_in(token=TOKEN)
        page.until(lambda: "closed in all workers" in page.text("#toast"))
        assert all(answer["at"] for answer in two.each("until", state="closed"))
        redis.stop()
        page.until(lambda: "Redis cannot be used" in page.text("#notices"))


def test_the_tokens_of_queries_and_their_waste_are_shown(seen: Page, app: StatusApp) -> None:
    assert not seen.one("#tokens-part").is_displayed()
    for work, use, count in (("query", "answer", 12_000), ("query", "retry", 300)):
        app.guards.events.publish(TokensUsed("llm.openai", work, use, count))
    seen.until(lambda: "Queries: 12,000 for answers" in seen.text("#tokens"))
    assert "Wasted: 300 by failed retries." in seen.text("#tokens")
    assert seen.complaints() == []
