"""The report in a real browser: Chromium, driven by Playwright, where both are installed."""

import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from llc_jax.codes.codebook import Codebook
from llc_jax.experiment.run_report import write_report
from tests.made_runs import NASTY, make_run

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
NAMES = (*NASTY, *(f"class {index}" for index in range(47)))
BITS = 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = make_run(tmp_path_factory.mktemp("run"), NAMES, BITS)
    write_report(workdir)
    return workdir


@pytest.fixture
def open_page(browser):
    """Opens a report; at the end there were no errors and no requests of the page's own."""
    contexts, complaints = [], []

    def open_page(workdir, width=1280, height=900, scheme="light"):
        address = (workdir / "report.html").as_uri()
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))

        def note(request):
            if request.url != address and not request.url.startswith(("data:", "blob:")):
                complaints.append(request.url)

        page.on("request", note)
        page.goto(address)
        page.wait_for_function("document.querySelector('#codebook-figure canvas').width > 300")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def expected(bits, signs, prefix, radius):
    """What the explorer says: the least distance, and how many classes are near; by NumPy."""
    distances = (signs[:, :prefix] != bits[:prefix]).sum(axis=1)
    return distances, int((distances <= radius).sum())


def assert_explorer_shows(page, bits, signs, prefix, radius):
    distances, near = expected(bits, signs, prefix, radius)
    answer = page.locator("#explorer-answer").inner_text()
    assert f"at distance {distances.min()}" in answer
    word = "class" if near == 1 else "classes"
    within = f"Within the radius: {near} {word}." if near else "the code is of no class"
    assert within in answer
    items = page.locator("#explorer-nearest li")
    shown = [
        (row.locator("b").inner_text(), row.locator("button").inner_text()) for row in items.all()
    ]
    assert len(shown) == max(12, near)
    assert [int(number) for number, _ in shown] == sorted(distances)[: len(shown)]
    for number, name in shown:
        assert distances[NAMES.index(name)] == int(number)


def test_bits_prefix_and_radius_lead_to_the_nearest_classes(run, open_page):
    page = open_page(run)
    signs = Codebook.load(run / "codebook.npz").latent >= 0
    page.select_option("#explorer-class", label="class 5")
    bits = signs[NAMES.index("class 5")].copy()
    assert_explorer_shows(page, bits, signs, BITS, 2)
    for bit in (3, 11, 12, 3, 0):
        page.locator("#explorer-bits button").nth(bit).click()
        bits[bit] ^= True
        assert_explorer_shows(page, bits, signs, BITS, 2)
    for prefix, radius in ((20, 7), (8, 7), (8, 0), (1, 1)):
        for name, value in (("prefix", prefix), ("radius", radius)):
            page.locator(f"#explorer-{name}").fill(str(value))
        assert_explorer_shows(page, bits, signs, prefix, radius)
    unique = len(np.unique(signs[:, :1], axis=0))
    assert f"make {unique} different codes" in page.locator("#explorer-prefix-remark").inner_text()
    page.locator("#explorer-nearest button").nth(3).click()
    assert page.locator("#explorer-answer").inner_text().count("at distance 0") == 1


def test_names_and_distances_are_told_under_the_pointer_and_a_click_loads_a_code(run, open_page):
    page = open_page(run)
    signs = Codebook.load(run / "codebook.npz").latent >= 0
    order = page.evaluate("JSON.parse(document.getElementById('figures').textContent).order")
    canvas = page.locator("#distances-figure canvas")
    canvas.scroll_into_view_if_needed()
    side = canvas.bounding_box()["width"]
    canvas.hover(position={"x": side - 8, "y": 25})
    tooltip = page.locator("#tooltip")
    first, last = order[0], order[-1]
    different = (signs[first] != signs[last]).sum()
    assert tooltip.inner_text() == f"{NAMES[first]}\n{NAMES[last]}\n{different} bits apart"
    canvas.click(position={"x": side - 8, "y": 25})
    assert page.locator("#explorer-class").input_value() == str(first)
    codebook = page.locator("#codebook-figure canvas")
    codebook.scroll_into_view_if_needed()
    codebook.click(position={"x": codebook.bounding_box()["width"] - 4, "y": 18 + 18 * 2 + 5})
    assert tooltip.inner_text() == NAMES[order[2]]
    for height in range(100, 900, 8):  # The root, of all classes, is at the left.
        codebook.hover(position={"x": 10, "y": height}, force=True)
        if tooltip.is_visible() and tooltip.inner_text().startswith("50 classes\n"):
            break
    else:
        pytest.fail("The root of the dendrogram was not found.")
    codebook.click(position={"x": codebook.bounding_box()["width"] - 4, "y": 18 + 18 * 2 + 5})
    assert page.locator("#explorer-class").input_value() == str(order[2])


def test_a_click_on_an_image_loads_its_code(run, open_page):
    page = open_page(run)
    examples = page.evaluate("JSON.parse(document.getElementById('figures').textContent).examples")
    canvas = page.locator("#hyperplanes-figure canvas")
    canvas.scroll_into_view_if_needed()
    (image, probability), *_ = examples["bits"][0]["sides"][1]
    name, taken, code, _ = examples["images"][image]
    described = f"{name}, recognised" if name == taken else f"{name}, taken for {taken}"
    start = 62 + 8 * (66 + 3) + 22  # Of the side +1, below the line of titles.
    canvas.hover(position={"x": start + 20, "y": 40})
    text = page.locator("#tooltip").inner_text()
    assert text == f"{described}\nbit 0 is +1 with probability {probability:.4g}"
    canvas.click(position={"x": start + 20, "y": 40})
    pressed = page.locator("#explorer-bits button")
    found = [button.get_attribute("aria-pressed") == "true" for button in pressed.all()]
    assert found == [letter == "1" for letter in code]
    assert page.locator("#explorer-class").input_value() == str(NAMES.index(name))
    canvas = page.locator("#found-figure canvas")
    canvas.focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    other, distance = examples["queries"][0]["found"][0]
    is_right = (
        examples["images"][other][0] == examples["images"][examples["queries"][0]["image"]][0]
    )
    said = page.locator("#tooltip").inner_text().splitlines()[-1]
    assert said.startswith(f"{'right' if is_right else 'wrong'}, {distance} bit")


def test_scores_of_unknown_images_are_chosen(run, open_page):
    page = open_page(run)
    assert page.locator("#unknown-figures figure").count() == 4
    select = page.locator("#unknown-figures select").first
    canvas = page.locator("#unknown-figures figure canvas").nth(1)
    canvas.scroll_into_view_if_needed()
    before = canvas.screenshot()
    select.select_option("1")
    assert canvas.screenshot() != before
    page.locator("#unknown-figures canvas").first.focus()
    page.keyboard.press("ArrowRight")
    assert "known images called unknown: 0.0%" in page.locator("#tooltip").inner_text()


def test_all_can_be_done_with_the_keyboard(run, open_page):
    page = open_page(run)
    order = page.evaluate("JSON.parse(document.getElementById('figures').textContent).order")
    page.locator("#codebook-figure canvas").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    sign = "+1" if Codebook.load(run / "codebook.npz").latent[order[1], 1] >= 0 else "\u22121"
    assert page.locator("#tooltip").inner_text() == f"{NAMES[order[1]]}\nbit 1: {sign}"
    page.keyboard.press("Enter")
    assert page.locator("#explorer-class").input_value() == str(order[1])
    page.keyboard.press("Escape")
    assert page.locator("#tooltip").is_hidden()
    bit = page.locator("#explorer-bits button")
    bit.first.focus()
    page.keyboard.press("ArrowRight")
    before = bit.nth(1).get_attribute("aria-pressed")
    page.keyboard.press("Space")
    assert bit.nth(1).get_attribute("aria-pressed") != before
    page.locator("#explorer-radius").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#explorer-radius-value").inner_text() == "3 bits"


def test_tables_are_sorted_and_filtered(run, open_page):
    page = open_page(run)
    table = page.locator("#classes")
    head = table.get_by_role("button", name="bits to it")

    def column():
        return [int(cell) for cell in table.locator("tbody tr td:nth-child(7)").all_inner_texts()]

    values = column()
    head.click()
    assert column() == sorted(values, reverse=True)
    head.click()
    assert column() == sorted(values)
    table.locator("input").fill("CLASS 46")
    rows = table.locator("tbody tr:visible")
    assert 1 <= rows.count() < 10
    assert all("class 46" in text for text in rows.all_inner_texts())


def test_names_do_no_harm(run, open_page):
    page = open_page(run)
    for name in NASTY:
        page.select_option("#explorer-class", label=name)
        assert name in page.locator("#explorer-answer").inner_text()
    assert page.evaluate("window.harmed === undefined")


def test_figures_are_saved_as_svg_and_png(run, open_page, tmp_path):
    page = open_page(run)
    hosts = ("#codebook-figure", "#distances-figure", "#found-figure", "#retrieval-figures")
    for host in hosts:
        for kind in ("SVG", "PNG"):
            with page.expect_download() as download:
                page.locator(f"{host} button", has_text=kind).first.click()
            path = tmp_path / f"figure.{kind}"
            download.value.save_as(path)
            if kind == "PNG":
                assert path.read_bytes().startswith(b"\x89PNG")
            else:
                root = ElementTree.parse(path).getroot()
                assert root.tag == "{http://www.w3.org/2000/svg}svg"
                assert len(root) > 5


@pytest.mark.parametrize("width", [1280, 390])
def test_both_themes_and_widths_are_read_without_scrolling_sideways(run, open_page, width):
    backgrounds = set()
    for scheme in ("light", "dark"):
        page = open_page(run, width, 844, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2


@pytest.mark.parametrize(("classes", "bits"), [(1, 8), (2, 1), (1000, 32), (12, 128)])
def test_any_number_of_classes_and_bits_is_shown(open_page, tmp_path, classes, bits):
    write_report(make_run(tmp_path, [f"class {index}" for index in range(classes)], bits))
    page = open_page(tmp_path)
    assert page.locator("*").count() < 60 * 1000
    assert page.locator("#explorer-bits button").count() == bits
    assert page.locator("#explorer-prefix-value").inner_text() == str(bits)
