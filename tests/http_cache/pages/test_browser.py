"""The pages in a real browser: nothing a store holds runs there, and they fit on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neve.store.services import open_services
from tests.http_cache.pages import samples
from tests.http_cache.pages.samples import address_of, named, put_hello, put_hostile
from tests.http_cache.pages.served import Served, serving

pytestmark = pytest.mark.browser

HELLO = named("hello-2.12")
HOSTILE = named("hostile-1")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # Tests may run as root, for whom it has no sandbox.
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
PHONE = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
SECONDS = 90


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    services = open_services(f"local://{tmp_path_factory.mktemp('store')}")
    put_hello(services)
    put_hostile(services)
    with serving(services) as running:
        yield running
    services.close()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    profile: Path = tmp_path_factory.mktemp("profile")
    for option in (*OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    driver.set_page_load_timeout(SECONDS)
    yield driver
    driver.quit()


@pytest.fixture
def browser(started: Any) -> Any:
    """A browser on an ordinary screen, with scripts enabled and nothing in its log."""
    started.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    started.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    started.get_log("browser")
    return started


def complaints(browser: Any) -> list[str]:
    """What the browser has to complain about: errors of pages, and scripts that were kept from running."""
    return [entry["message"] for entry in browser.get_log("browser")]


def click(browser: Any, text: str) -> None:
    from selenium.webdriver.common.by import By

    browser.find_element(By.PARTIAL_LINK_TEXT, text).click()


@pytest.mark.parametrize("scripts", [True, False])
def test_from_the_start_page_to_a_file(browser: Any, served: Served, scripts: bool) -> None:
    from selenium.webdriver.common.by import By

    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
    browser.get(served.url)
    field = browser.find_element(By.NAME, "q")
    field.send_keys("hello-2")
    field.submit() if scripts else browser.find_element(By.CSS_SELECTOR, "main button").click()
    for text in ("hello-2.12", "share", "README.md"):
        click(browser, text)
    assert browser.title == "README.md · hello-2.12 · Test cache"
    assert "Grüße aus dem Schnee" in browser.find_element(By.TAG_NAME, "main").text
    click(browser, "View as plain text")
    assert "Grüße aus dem Schnee" in browser.find_element(By.TAG_NAME, "body").text
    assert complaints(browser) == []


def test_nothing_that_a_store_path_holds_runs(browser: Any, served: Served) -> None:
    browser.get(served.url + address_of(HOSTILE))
    assert browser.title == "hostile-1 · Test cache"
    assert browser.execute_script("return document.body.id") == ""
    assert browser.execute_script("return document.scripts.length") == 0
    assert complaints(browser) == []
    for name in (*samples.HOSTILE_NAMES, b"link-0", b"link-2", b"evil.svg"):
        browser.get(served.url + address_of(HOSTILE, name))
        assert browser.title.endswith(" · hostile-1 · Test cache")
        assert browser.execute_script("return document.body.id") == ""
    assert complaints(browser) == []


@pytest.mark.parametrize(
    "place", [(HOSTILE, b"evil.svg"), (HOSTILE, samples.HOSTILE_NAMES[0]), (HELLO, b"share", b"page.html")]
)
def test_files_are_shown_and_do_not_run(browser: Any, served: Served, place: tuple[Any, ...]) -> None:
    store_path, *names = place
    browser.get(served.url + address_of(store_path, *names, route="raw"))
    assert "pwned" not in browser.title
    shown = browser.execute_script("return [document.contentType, document.body.id, document.body.innerText]")
    assert shown[:2] == ["text/plain", ""]
    assert "<script>" in shown[2]


@pytest.mark.parametrize(
    "address",
    [
        "/",
        "/search?q=o",
        "/search?q=" + "a" * 300,
        "/no/such/page",
        address_of(HELLO),
        address_of(HELLO, b"share", b"README.md"),
        address_of(HELLO, b"bin", b"hello"),
        address_of(HOSTILE),
        address_of(HOSTILE, b"a" * 255),
    ],
)
def test_pages_fit_on_a_phone(browser: Any, served: Served, address: str) -> None:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    browser.get(served.url + address)
    wide, high = browser.execute_script(
        "return [document.documentElement.scrollWidth,"
        " Math.min(...[...document.querySelectorAll('button, a.button')].map(e => e.offsetHeight))]"
    )
    assert wide == PHONE["width"]
    assert high >= 40  # What a thumb hits.


def test_dark_for_who_wants_it_dark(browser: Any, served: Served) -> None:
    colours = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.get(served.url)
        colours.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert colours[0] != colours[1]


def test_everything_has_a_label(browser: Any, served: Served) -> None:
    """For who does not see the page."""
    from selenium.webdriver.common.by import By

    browser.get(served.url + address_of(HELLO))
    assert browser.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"
    assert len(browser.find_elements(By.TAG_NAME, "main")) == 1
    assert len(browser.find_elements(By.TAG_NAME, "h1")) == 1
    for element in browser.find_elements(By.CSS_SELECTOR, "input, button, nav, [role=region]"):
        assert element.accessible_name
