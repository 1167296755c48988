"""The page in a real browser: headless Chromium, where there is one."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

import vitjax
from vitjax.report.document import write_report

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium"),
]
IMAGES = 12
GRID = (8, 8)
EVIL = "<img src=x onerror=document.title='run'></script><b>"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # Root, as in a container, has no sandbox.
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the embedded model; one class has a name that is HTML."""
    model = vitjax.load("textured_digits")
    classes = (EVIL, *model.classes[1:])
    model = model.replace(classes=classes, class_ids=model.classes)
    folder = tmp_path_factory.mktemp("browser") / "rows"
    options = dict(batch_size=6, limit=IMAGES, show_progress=False)
    return vitjax.run("tokens", model, "textured_digits", folder, **options)


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    other = tmp_path_factory.mktemp("second")
    model = vitjax.init(vitjax.Config(64, 16, 16, 2, 2, 24), classes=run_classes(run))
    options = dict(batch_size=6, limit=IMAGES, show_progress=False)
    second = vitjax.run("identifiability", model, "textured_digits", other, **options)
    unlabelled = tmp_path_factory.mktemp("pictures")
    Image.fromarray(run["picture"][0]).save(unlabelled / "a <b>.png")
    bare = tmp_path_factory.mktemp("bare")
    third = vitjax.run(
        "identifiability", model, f"folder:{unlabelled}", bare, **options
    )
    return {
        "one": write_report([run], run.path),
        "bare": write_report([third], bare),
        "two": write_report([run, second], other),
    }


def run_classes(run):
    return run.manifest["model"]["class_ids"]


@pytest.fixture
def opened(browser, written):
    """opened(which, ...) -> the page; at the end, nothing was complained of."""
    complaints, contexts = [], []

    def open_page(which="one", *, width=1200, scheme="light", hash=""):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(f"file://{written[which]}{hash}")
        page.wait_for_selector("#explorer-depth td", state="attached")
        return page

    requests: list[str] = []
    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert not [url for url in requests if not url.startswith(("file:", "data:"))]


def point(page, patch, *, click=False):
    """Point at the middle of a patch."""
    rows, columns = GRID
    stage = page.locator("#explorer-stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    row, column = divmod(patch, columns)
    x = box["x"] + box["width"] * (column + 0.5) / columns
    y = box["y"] + box["height"] * (row + 0.5) / rows
    (page.mouse.click if click else page.mouse.move)(x, y)


def shown_classes(page):
    return page.locator("#explorer-classes li span").all_inner_texts()


def expected_classes(run, image, layer, token):
    names = run.manifest["model"]["classes"]
    return [names[n] for n in run["token_classes"][image, layer, token]]


def test_pointing_at_a_token_shows_its_classes(opened, run):
    page, depth = opened(), 6
    for patch in (0, 27, 63):
        point(page, patch)
        row, column = divmod(patch, 8)
        where = f"image token, row {row + 1}, column {column + 1}, after block {depth}"
        assert page.inner_text("#explorer-token") == where
        assert shown_classes(page) == expected_classes(run, 0, depth - 1, patch + 1)
        rank = run["rank_residual"][0, depth - 1, patch + 1]
        assert f"label's rank {rank}," in page.inner_text("#explorer-values")
    firsts = page.locator("#explorer-depth tr td:nth-child(2)").all_inner_texts()
    assert firsts == [expected_classes(run, 0, layer, 64)[0] for layer in range(depth)]


def test_a_click_holds_a_token_and_keys_move_on(opened, run):
    page = opened()
    point(page, 9, click=True)
    point(page, 40)
    assert "row 2, column 2" in page.inner_text("#explorer-token")
    stage = page.locator("#explorer-stage")
    stage.press("ArrowDown")
    stage.press("[")
    assert "row 3, column 2, after block 5" in page.inner_text("#explorer-token")
    assert shown_classes(page) == expected_classes(run, 0, 4, 18)
    moves = (("Left", 3, 1), ("Left", 3, 1), ("Up", 2, 1), ("Right", 2, 2))
    for key, row, column in (*moves, ("Up", 1, 2), ("Up", 1, 2)):
        stage.press(f"Arrow{key}")
        assert f"row {row}, column {column}" in page.inner_text("#explorer-token")
    page.get_by_role("button", name="[CLS]").click()
    assert page.inner_text("#explorer-token") == "[CLS], after block 5"
    assert shown_classes(page) == expected_classes(run, 0, 4, 0)


def test_maps_of_blocks_and_heads(opened, run):
    page = opened()
    page.select_option("#explorer-quantity", "helpful")
    page.get_by_role("button", name="block 3").click()
    page.get_by_role("button", name="head 2", exact=True).click()
    point(page, 20, click=True)
    expected = float(run["helpful"][0, 2, 1, 20])
    most = float(np.abs(run["helpful"][0, 2, 1]).max())
    said = re.search(r"helpful to the label (\S+)", page.inner_text("#explorer-values"))
    assert float(said[1].replace("−", "-")) == pytest.approx(expected, abs=most / 250)
    page.select_option("#explorer-quantity", "difference")
    parts = np.maximum(run["helpful"][0, 2, 1], 0), run["attended"][0, 2, 1]
    helpful, attended = (part / part.sum() for part in parts)
    said = re.search(r"minus attended (\S+)", page.inner_text("#explorer-values"))
    difference = helpful[20] - attended[20]
    assert float(said[1].replace("−", "-")) == pytest.approx(difference, abs=0.001)
    page.select_option("#explorer-head", "all")
    total = 0
    for head in range(run["helpful"].shape[2]):
        parts = run["helpful"][0, 2, head].clip(0), run["attended"][0, 2, head]
        helpful, attended = (part / part.sum() for part in parts)
        total += helpful[20] - attended[20]
    said = re.search(r"minus attended (\S+)", page.inner_text("#explorer-values"))
    assert float(said[1].replace("−", "-")) == pytest.approx(total, abs=0.003)
    block = page.get_by_role("button", name="block 5")
    block.press("Enter")
    block.press("Enter")  # still there, and still in focus
    assert page.evaluate("document.activeElement.ariaLabel") == "block 5"
    assert "after block 5" in page.inner_text("#explorer-token")
    button = page.get_by_role("button", name="head 2", exact=True)
    assert button.get_attribute("aria-pressed") == "false"


def test_the_map_is_painted(opened, run):
    page = opened()
    page.select_option("#explorer-quantity", "identifiability")
    pixels = page.evaluate(
        """() => {
          const canvas = document.getElementById("explorer-map");
          const data = canvas.getContext("2d").getImageData(2, 2, 1, 1).data;
          return [canvas.width, ...data];
        }"""
    )
    from matplotlib import colormaps

    level = 1 - run["rank_residual"][0, -1, 1] / 10
    expected = colormaps["viridis"](round(255 * float(level)), bytes=True)
    assert pixels[0] == 8 * 24 and np.abs(np.subtract(pixels[1:], expected)).max() <= 2


def test_pictures_are_pages_of_their_own(opened, run):
    page = opened(hash="#image-0-7")
    assert page.inner_text("#explorer-about").startswith("7 ·")
    page.click("#explorer-next")
    page.wait_for_url("**#image-0-8")
    right = run["label"][:] == run["prediction"][:]
    page.select_option("#explorer-filter", "right")
    listed = page.locator("#explorer-image option").count()
    assert listed == right.sum()


def test_names_are_text(opened, run):
    page = opened()
    image = int(np.flatnonzero(run["label"][:] == 0)[0])
    page.evaluate(f"location.hash = '#image-0-{image}'")
    about = page.locator("#explorer-about")
    sync_api.expect(about).to_contain_text(f"{image} ·")
    assert EVIL in page.inner_text("#explorer-about")
    assert page.title() != "run" and page.locator("#explorer-about img").count() == 0


def test_a_picture_of_which_nothing_is_known(opened):
    page = opened("bare")
    assert "0 · a <b>.png · answer" in page.inner_text("#explorer-about")
    assert page.locator("#explorer-picture").is_visible()
    assert not page.locator("#explorer-map").is_visible()


@pytest.mark.parametrize("scheme", ("light", "dark"))
def test_nothing_is_wider_than_a_phone(opened, scheme):
    page = opened(width=390, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    bright = np.mean([int(part) for part in re.findall(r"\d+", ground)[:3]])
    assert (bright > 128) == (scheme == "light")


def test_two_runs_side_by_side(opened):
    page = opened("two")
    page.select_option("#explorer-image", "3")
    page.wait_for_url("**#image-0-3")
    page.select_option("#explorer-run", "1")
    page.wait_for_url("**#image-1-3")
    assert shown_classes(page) == []  # `identifiability` keeps none of tokens
    assert "label's rank" in page.inner_text("#explorer-values")


def test_tables_sort(opened):
    page = opened("two")
    table = page.locator("table.sortable").first
    column = table.locator("th").nth(1)
    for way in ("ascending", "descending"):
        column.get_by_role("button").click()
        assert column.get_attribute("aria-sort") == way
        texts = table.locator("td:nth-child(2)").all_inner_texts()
        numbers = [float(t.split()[0].replace("−", "-")) for t in texts if t != "–"]
        assert numbers == sorted(numbers, reverse=way == "descending")
    assert len(numbers) > 4
