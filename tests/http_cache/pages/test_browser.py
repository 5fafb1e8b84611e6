"""The pages in a real browser: nothing a store holds runs there, and they fit on a phone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    started.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    started.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    started.execute_cdp_cmd("Page.setBypassCSP", {"enabled": False})
    started.get_log("browser")
    return started


def complaints(browser: Any) -> list[str]:
    """What the browser has to complain about: errors of pages, and scripts that were kept from running."""
    return [entry["message"] for entry in browser.get_log("browser")]


def reach(browser: Any, where: str, act: Callable[[], None]) -> None:
    """Does something that leads to the page whose address ends so.

    A browser that is leaving a page may refuse to be asked about it, so this tries until it is there.
    """
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.support.ui import WebDriverWait

    def there(_: Any) -> bool:
        if not browser.current_url.endswith(where):
            act()
        return bool(browser.current_url.endswith(where))

    WebDriverWait(browser, SECONDS, 0.05, [WebDriverException]).until(there)


@pytest.mark.parametrize("scripts", [True, False])
def test_from_the_start_page_to_a_file(browser: Any, served: Served, scripts: bool) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
    browser.get(served.url)

    def search() -> None:
        field = browser.find_element(By.NAME, "q")
        field.clear()
        field.send_keys("hello-2")
        if scripts:
            field.send_keys(Keys.ENTER)
        else:
            browser.find_element(By.CSS_SELECTOR, "main button").click()

    def click(text: str) -> Callable[[], None]:
        return lambda: browser.find_element(By.PARTIAL_LINK_TEXT, text).click()

    reach(browser, "/search?q=hello-2", search)
    reach(browser, address_of(HELLO), click("hello-2.12"))
    reach(browser, address_of(HELLO, b"share"), click("share"))
    reach(browser, address_of(HELLO, b"share", b"README.md"), click("README.md"))
    assert browser.title == "README.md · hello-2.12 · Test cache"
    assert "Grüße aus dem Schnee" in browser.find_element(By.TAG_NAME, "main").text
    reach(browser, address_of(HELLO, b"share", b"README.md", route="raw"), click("View as plain text"))
    assert "Grüße aus dem Schnee" in browser.find_element(By.TAG_NAME, "body").text
    assert complaints(browser) == []


@pytest.mark.parametrize("policy", [True, False])
def test_nothing_that_a_store_path_holds_runs(browser: Any, served: Served, policy: bool) -> None:
    """Because it is escaped, also in a browser that knows no Content-Security-Policy."""
    browser.execute_cdp_cmd("Page.setBypassCSP", {"enabled": not policy})
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


def test_a_page_runs_no_script_even_if_one_got_into_it(browser: Any, served: Served) -> None:
    browser.get(served.url + address_of(HOSTILE))
    browser.execute_script(
        """
        const script = document.createElement('script');
        script.textContent = "document.title = 'pwned'";
        document.body.append(script);
        document.body.insertAdjacentHTML('beforeend', '<img src="x:" onerror="document.title=1">');
        """
    )
    assert browser.title == "hostile-1 · Test cache"
    assert "Content Security Policy" in " ".join(complaints(browser))


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


@pytest.mark.parametrize("width", [320, 360, 768])
@pytest.mark.parametrize(
    "address",
    [
        "/",
        "/search?q=o",
        "/search?q=" + "a" * 300,
        "/no/such/page",
        address_of(HELLO),
        address_of(HELLO, b"bin"),
        address_of(HELLO, b"lib"),
        address_of(HELLO, b"share", b"README.md"),
        address_of(HELLO, b"bin", b"hello"),
        address_of(HOSTILE),
        address_of(HOSTILE, b"a" * 255),
        address_of(HOSTILE, samples.SCRIPT.replace(b"/", b"\\")),
    ],
)
def test_pages_fit_on_small_screens(browser: Any, served: Served, address: str, width: int) -> None:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**PHONE, "width": width})
    browser.get(served.url + address)
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    # Nothing sticks out of what it is in either, but for text that scrolls in its own frame.
    out = browser.execute_script(
        "return [...document.querySelectorAll('main *:not(pre.code *):not(svg *)')]"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML)"
    )
    assert out == []


@pytest.mark.parametrize(
    "address", ["/", "/search?q=o", "/no/such/page", address_of(HELLO), address_of(HOSTILE, b"a" * 255)]
)
def test_thumbs_hit_what_they_aim_at(browser: Any, served: Served, address: str) -> None:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    browser.get(served.url + address)
    heights = browser.execute_script(
        "return [...document.querySelectorAll('a:not(.skip), button, input')]"
        ".map(e => [e.getBoundingClientRect().height, e.outerHTML])"
    )
    assert heights
    assert [each for each in heights if each[0] < 40] == []


def test_what_is_to_be_copied_is_selected_by_one_click(browser: Any, served: Served) -> None:
    from selenium.webdriver.common.by import By

    browser.get(served.url)
    browser.find_element(By.CSS_SELECTOR, ".command code").click()
    selected = browser.execute_script("return getSelection().toString()")
    assert selected.splitlines() == [
        "extra-substituters = https://cache.test",
        "extra-trusted-public-keys = test-1:bm90IGEga2V5",
    ]


def brightness(colour: str) -> float:
    """Of ``rgb(...)``, as WCAG 2 defines relative luminance."""
    channels = [int(part) / 255 for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted(map(brightness, (one, other)))
    return (light + 0.05) / (dark + 0.05)


# Every text of a page, its colour and what is behind it.
TEXTS = """
const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!c.startsWith('rgba')) return c; } return 'rgb(255, 255, 255)'; };
return [...document.querySelectorAll('body *')]
    .filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()))
    .map(e => [e.innerText, getComputedStyle(e).color, behind(e)]);
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_told_from_what_is_behind_it(browser: Any, served: Served, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    grounds = set()
    for address in ("/", "/search?q=o", "/no", address_of(HELLO), address_of(HELLO, b"share", b"README.md")):
        browser.get(served.url + address)
        texts = browser.execute_script(TEXTS)
        assert len(texts) > 5
        assert [text for text in texts if contrast(text[1], text[2]) < 4.5] == []
        grounds.add(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
    [ground] = grounds
    assert (brightness(ground) < 0.5) == (scheme == "dark")


@pytest.mark.parametrize("address", ["/", "/search?q=o", "/no", address_of(HELLO), address_of(HELLO, b"bin")])
def test_everything_has_a_label(browser: Any, served: Served, address: str) -> None:
    """For who does not see the page."""
    from selenium.webdriver.common.by import By

    browser.get(served.url + address)
    assert browser.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"
    for tag in ("main", "h1", "header", "footer"):
        assert len(browser.find_elements(By.TAG_NAME, tag)) == 1
    for element in browser.find_elements(By.CSS_SELECTOR, "a, input, button, nav, section, [role=region]"):
        if element.get_attribute("class") != "hero":
            assert element.accessible_name
    identities = browser.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(identities) == len(set(identities))


def test_keys_lead_past_the_head_of_the_page(browser: Any, served: Served) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.get(served.url + address_of(HELLO))
    browser.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.switch_to.active_element.accessible_name == "Skip to the content"
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.switch_to.active_element.get_attribute("id") == "content"
