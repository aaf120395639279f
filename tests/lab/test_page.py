"""The page in a real browser: sizes and themes, keyboard, motion, controls, and the topology's end."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Locator, Page, expect

from tests.support.labs import GUESTS, staying_up, topology_file
from tests.support.pages import Served, chromium, page_of, served_at, words_apart
from tests.support.patience import patient
from tests.support.tiers import tiered

pytestmark = [pytest.mark.usefixtures("warm"), pytest.mark.needs("chromium")]

WIDE, NARROW = (1280, 800), (390, 844)
SIZES = pytest.mark.parametrize("size", [WIDE, NARROW], ids=lambda size: str(size[0]))
SEEN_S = 30.0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with page_of(topology_file(tmp_path_factory.mktemp("page"), "page", GUESTS)) as found:
        for guest in ("anna", "carl"):
            assert found.do("traffic", guest=guest, to="wire", frame=256, pps=200)[0] == 200
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as one:
        yield one


@pytest.fixture(autouse=True)
def patience() -> None:
    expect.set_options(timeout=1000 * patient(SEEN_S))


def opened(browser: Browser, address: str, size: tuple[int, int] = WIDE, **options: str) -> Page:
    """The page, once it shows something; closed with its browser."""
    page = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options).new_page()  # type: ignore[arg-type]
    page.set_default_timeout(1000 * patient(SEEN_S))
    errors: list[Error] = []
    page.on("pageerror", lambda error: errors.append(error))
    page.goto(address, wait_until="commit")
    expect(page.locator("#state")).to_have_text("up")
    expect(page.locator("#chart-cpu .main-svg").first).to_be_visible()
    assert errors == []
    return page


def hop(page: Page, name: str) -> Locator:
    """The one that is seen at this size."""
    return page.locator(f'.hop[data-hop="{name}"]:visible')


@SIZES
@pytest.mark.parametrize("theme", tiered(["light", "dark"], ["light"]))
def test_it_is_all_there_at_either_size_in_either_theme(
    browser: Browser, served: Served, size: tuple[int, int], theme: str
) -> None:
    page = opened(browser, served.address, size, color_scheme=theme)
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    for name in ("anna>dom0", "dom0>nic", "nic>wire", "carl>nic", "nic>dora"):
        expect(hop(page, name)).to_have_count(1)
    for name in ("anna>dom0", "dom0>nic", "carl>nic", "nic>wire"):
        expect(hop(page, name)).to_have_class(moving(name))
    assert hop(page, "carl>dom0").count() == 0
    background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    light = sum(int(part) for part in background.removeprefix("rgb(").removesuffix(")").split(",")) > 3 * 128
    assert light == (theme == "light")
    colours = {
        page.evaluate("name => getComputedStyle(document.documentElement).getPropertyValue(name)", f"--{path}") for path in PATHS
    }
    assert len(colours) == len(PATHS)
    page.context.close()


PATHS = ("split", "bypass", "cdna", "trapped", "native", "shared")


def moving(name: str) -> str:
    """The classes of a hop at which frames are seen."""
    path = "shared" if "wire" in name else "split" if "dom0" in name else "bypass"
    return f"hop path-{path} carries-frames moves"


@pytest.mark.long
@SIZES
def test_words_of_the_drawing_do_not_overlap(browser: Browser, served: Served, size: tuple[int, int]) -> None:
    page = opened(browser, served.address, size)
    assert words_apart(page) > 30
    page.context.close()


def test_hops_are_reached_and_chosen_by_keyboard(browser: Browser, served: Served) -> None:
    page = opened(browser, served.address)
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        if name := page.evaluate("() => document.activeElement.dataset.hop"):
            reached.append(name)
        if name == "anna>dom0":
            page.keyboard.press("Enter")
            expect(page.locator("#details-title")).to_have_text("anna → dom0")
            expect(page.locator("#details-body")).to_contain_text("dom0/netback_tx.py")
            expect(hop(page, name)).to_have_attribute("aria-pressed", "true")
            page.keyboard.press("Escape")
            expect(page.locator("#details-title")).to_have_text("How to read it")
    assert len(set(reached)) == page.locator(".hop:visible").count()
    page.context.close()


@pytest.mark.long
def test_who_asks_for_no_motion_gets_none(browser: Browser, served: Served) -> None:
    for wish, name in (("no-preference", "flow"), ("reduce", "none")):
        page = opened(browser, served.address, reduced_motion=wish)
        expect(hop(page, "carl>nic")).to_have_class(moving("carl>nic"))
        expect(hop(page, "carl>nic").locator(".flow")).to_have_css("animation-name", name)
        expect(hop(page, "carl>nic").locator(".flow")).to_have_css("visibility", "visible")
        page.context.close()


def test_without_the_token_it_is_to_look_at(browser: Browser, served: Served) -> None:
    page = opened(browser, served.address.partition("#")[0])
    expect(page.locator("#view-only")).to_be_visible()
    expect(page.locator("#proof")).to_be_disabled()
    assert page.locator("#guests button:enabled, [data-process] button:enabled").count() == 0
    page.context.close()


@pytest.mark.long
def test_the_proof_is_a_button(browser: Browser, served: Served) -> None:
    page = opened(browser, served.address)
    assert served.token not in page.url
    page.locator("#proof").click()
    expect(page.locator("#done")).to_have_text("dom0 stands still")
    expect(hop(page, "dom0>nic")).to_have_class("hop path-split carries-frames")
    expect(hop(page, "carl>nic")).to_have_class(moving("carl>nic"))
    expect(page.locator(".node[data-node=dom0]:visible")).to_contain_text("stopped")
    page.reload()  # the token stays in the tab
    page.locator("#proof", has_text="Continue Dom0").click()
    expect(hop(page, "dom0>nic")).to_have_class(moving("dom0>nic"))
    page.context.close()


@pytest.mark.long
def test_traffic_and_paths_are_changed(browser: Browser, served: Served) -> None:
    page = opened(browser, served.address)
    row = page.locator('[data-guest="dora"]')
    row.locator("select").select_option("carl")
    row.locator("input").nth(1).fill("100")
    row.locator("button[type=submit]").click()
    expect(hop(page, "dora>nic")).to_have_class(moving("carl>nic"))
    row.locator("button", has_text="Move to split").click()
    expect(hop(page, "dora>dom0")).to_have_class(moving("dora>dom0"))
    expect(page.locator("#events")).to_contain_text("moved")
    page.locator('[data-guest="dora"] button', has_text="Move to bypass").click()
    expect(hop(page, "dora>nic")).to_have_class(moving("carl>nic"))
    page.locator('[data-guest="dora"] .quiet').click()
    expect(page.locator("#done")).to_have_text("dora is quiet")
    page.context.close()


@pytest.mark.long
def test_the_topology_ends_under_the_page(browser: Browser, tmp_path: Path) -> None:
    file = topology_file(tmp_path, "page-end", '[[guest]]\nname = "carl"\npath = "bypass"\n')
    with staying_up(file, "--web", "--port", "0") as (topology, lines):
        page = opened(browser, served_at(lines).address)
        topology.terminate()
        expect(page.locator("#banner")).to_be_visible()
        expect(page.locator("#banner")).to_contain_text("What is shown is the last that was seen")
        expect(hop(page, "carl>nic")).to_have_count(1)
        page.context.close()
