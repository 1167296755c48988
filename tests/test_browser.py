"""The page in a real browser: headless Chromium, where there is one."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

import vitjax

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
    classes = run.manifest["model"]["class_ids"]
    model = vitjax.init(vitjax.Config(64, 16, 16, 2, 2, 24), classes=classes)
    options = dict(batch_size=6, limit=IMAGES, show_progress=False)
    second = vitjax.run("identifiability", model, "textured_digits", other, **options)
    unlabeled = tmp_path_factory.mktemp("images")
    Image.fromarray(run["preview_image"][0].values).save(unlabeled / "a <b>.png")
    bare = tmp_path_factory.mktemp("bare")
    third = vitjax.run("identifiability", model, f"folder:{unlabeled}", bare, **options)
    pages = {
        "one": vitjax.write_report([run], run.path),
        "bare": vitjax.write_report([third], bare),
        "two": vitjax.write_report([run, second], other),
    }
    new = [name for name in run if re.match("chosen|token_(att|norm)", name)]
    cells = {"notebook": run, "both": [run, second], "old": run.drop_vars(new)}
    for name, rows in cells.items():
        pages[name] = other / f"{name}.html"
        pages[name].write_text(vitjax.explorer(rows)._repr_html_(), "utf-8")
    return pages


@pytest.fixture
def opened(browser, written):
    """opened(which, ...) -> the page; at the end, nothing was complained of."""
    complaints, contexts = [], []

    def open_page(which="one", hash="", *, width=1200, scheme="light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(f"file://{written[which]}{hash}")
        frame = page.frames[-1]
        frame.wait_for_selector("#explorer-depth td", state="attached")
        return frame if frame.url.startswith("about:") else page

    requests: list[str] = []
    yield open_page
    for context in contexts:
        context.close()
    # Tests read the pixels of a canvas; pages do not.
    assert [each for each in complaints if "willReadFrequently" not in each] == []
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
    return [names[n] for n in run["token_classes"][image, layer, token].values]


def shown_image(page):
    return int(page.inner_text("#explorer-about").split(" ")[0])


def value_of(page, name):
    """The number that stands after a map's name."""
    text = page.inner_text("#explorer-values")
    return float(re.search(rf"{name} ([^\s;]+)", text)[1].replace("−", "-"))


LAST = "#image=0&block=5"


def test_pointing_at_a_token_shows_its_classes(opened, run):
    page, last = opened(hash=LAST), 5
    for patch in (0, 27, 63):
        point(page, patch)
        row, column = divmod(patch, 8)
        where = f"image token, row {row}, column {column}, after block {last}"
        assert page.inner_text("#explorer-token") == where
        assert shown_classes(page) == expected_classes(run, 0, last, patch + 1)
        rank = int(run["rank_residual"][0, last, patch + 1])
        assert f"rank of the label {rank}," in page.inner_text("#explorer-values")
    firsts = page.locator("#explorer-depth tr td:nth-child(2)").all_inner_texts()
    assert firsts == [expected_classes(run, 0, layer, 64)[0] for layer in range(6)]


def test_a_click_pins_a_token_and_keys_move_on(opened, run):
    page = opened(hash=LAST)
    point(page, 9, click=True)
    point(page, 40)
    assert "row 1, column 1" in page.inner_text("#explorer-token")
    stage = page.locator("#explorer-stage")
    stage.press("ArrowDown")
    stage.press("[")
    assert "row 2, column 1, after block 4" in page.inner_text("#explorer-token")
    assert shown_classes(page) == expected_classes(run, 0, 4, 18)
    moves = (("Left", 2, 0), ("Left", 2, 0), ("Up", 1, 0), ("Right", 1, 1))
    for key, row, column in (*moves, ("Up", 0, 1), ("Up", 0, 1)):
        stage.press(f"Arrow{key}")
        assert f"row {row}, column {column}" in page.inner_text("#explorer-token")
    page.get_by_role("button", name="[CLS]").click()
    assert page.inner_text("#explorer-token") == "[CLS], after block 4"
    assert shown_classes(page) == expected_classes(run, 0, 4, 0)


def test_maps_of_blocks_and_heads(opened, run):
    page = opened(hash=LAST)
    relevancy, attention = run["helpful"][0, 2].values, run["attended"][0, 2].values
    positive = relevancy.clip(0)
    gap = positive / positive.sum(-1, keepdims=True)
    gap -= attention / attention.sum(-1, keepdims=True)
    page.select_option("#explorer-quantity", "relevancy")
    page.get_by_role("button", name="block 2").click()
    page.get_by_role("button", name="head 1", exact=True).click()
    point(page, 20, click=True)
    most = float(np.abs(relevancy[1]).max())
    shown = value_of(page, "relevancy for the label")
    assert shown == pytest.approx(relevancy[1, 20], abs=most / 250)
    page.select_option("#explorer-quantity", "gap")
    shown = value_of(page, "relevancy minus attention")
    assert shown == pytest.approx(gap[1, 20], abs=0.001)
    page.get_by_role("button", name="head 1", exact=True).click()  # all heads
    shown = value_of(page, "relevancy minus attention")
    assert shown == pytest.approx(gap[:, 20].sum(), abs=0.003)
    page.select_option("#explorer-quantity", "attention")
    shown = value_of(page, r"attention weights of \[CLS\], by head")
    assert shown == pytest.approx(attention[:, 20].mean(), abs=0.001)
    block = page.get_by_role("button", name="block 4")
    block.press("Enter")
    block.press("Enter")  # still there, and still in focus
    assert page.evaluate("document.activeElement.ariaLabel") == "block 4"
    assert "after block 4" in page.inner_text("#explorer-token")
    button = page.get_by_role("button", name="head 1", exact=True)
    assert button.get_attribute("aria-pressed") == "false"


def test_it_opens_where_there_is_something_to_see(opened, run):
    page = opened()
    image = shown_image(page)
    assert run["label"][image] == run["prediction"][image]
    assert int(page.input_value("#explorer-block")) in (4, 5)
    assert page.input_value("#explorer-quantity") == "rank"
    assert "on the object" in page.inner_text("#explorer-values")
    assert page.evaluate("location.hash") == ""


PIXEL = """() => {
  const canvas = document.getElementById("explorer-map");
  const data = canvas.getContext("2d").getImageData(2, 2, 1, 1).data;
  return [canvas.width, ...data];
}"""


@pytest.mark.parametrize("quantity", ("rank", "identifiability"))
def test_the_map_is_painted(opened, run, quantity):
    page = opened(hash=f"{LAST}&map={quantity}")
    pixels = page.evaluate(PIXEL)
    from matplotlib import colormaps

    rank = int(run["rank_residual"][0, -1, 1])
    level = 1 - np.log1p(rank) / np.log(10) if quantity == "rank" else 1 - rank / 10
    expected = colormaps["viridis"](round(255 * level), bytes=True)
    assert pixels[0] == 8 * 24 and np.abs(np.subtract(pixels[1:], expected)).max() <= 2
    ticks = page.locator("#explorer-ticks span").all_inner_texts()
    assert ticks == (["0", "1", "3", "9"] if quantity == "rank" else ["0", "1"])


def test_any_two_classes_and_their_difference(opened, run):
    page, patch, layer = opened(hash="#image=0&block=3"), 12, 3
    chosen = run["chosen_classes"][0].values.tolist()
    names = run.manifest["model"]["classes"]
    assert chosen[0] == run["label"][0] and sorted(chosen) == list(range(10))
    one, other = chosen[4], chosen[7]
    page.fill("#explorer-a", names[one])
    page.fill("#explorer-b", names[other])
    page.select_option("#explorer-quantity", "probability")
    page.get_by_role("button", name="A − B").click()
    point(page, patch, click=True)
    words = page.inner_text("#explorer-values").split("; ")
    for number, line in zip((one, other), words):
        assert f"rank of {names[number]} " in line or number == run["prediction"][0]
        place = layer, patch + 1, chosen.index(number)
        rank, logit = (run[f"chosen_{n}"][0][place] for n in ("ranks", "logits"))
        total = run["token_normalizer"][0, layer, patch + 1]
        shown = [
            float(re.search(rf"{n} (\S+?)(,|$)", line)[1].replace("−", "-"))
            for n in ("probability", "logit")
        ]
        assert re.search(r"rank of .*? (\d+),", line)[1] == str(int(rank))
        expected = [float(np.exp(logit - total)), float(logit)]
        assert shown == pytest.approx(expected, rel=0.1, abs=0.02)
    assert page.locator("#explorer-views canvas").count() == 3
    page.locator("#explorer-classes button").first.click()
    top = expected_classes(run, 0, layer, patch + 1)[0]
    assert page.input_value("#explorer-a") == top
    assert page.evaluate("location.hash").count("show=") == 0  # A alone


def test_attention_from_the_chosen_token(opened, run):
    page = opened(hash="#image=0&block=2&token=21&map=between")
    weights = run["token_attention"][0, 2, 21].values / 255
    weights = weights * run["token_attention_largest"][0, 2, 21].values
    shown = value_of(page, "attention to itself")
    assert shown == pytest.approx(weights[20], abs=weights.max() / 60)
    assert value_of(page, "all image tokens") == pytest.approx(weights.sum(), abs=0.1)
    before = page.evaluate(PIXEL)
    page.get_by_role("button", name="[CLS]").click()
    assert page.evaluate(PIXEL) != before


def test_blocks_are_played(opened):
    page = opened(hash="#image=0&block=5")
    number = page.locator("#explorer-block-number")
    stage = page.locator("#explorer-stage")
    stage.press(" ")
    sync_api.expect(number).to_have_text("0")
    sync_api.expect(number).to_have_text("1")
    stage.press(" ")
    assert "play" in page.inner_text("#explorer-play")
    page.click("#explorer-play")
    sync_api.expect(number).to_have_text("2")
    stage.press("]")  # stops it
    assert "play" in page.inner_text("#explorer-play")


def test_the_address_holds_what_is_looked_at(opened, run):
    page = opened(hash="#image=7&block=2&token=12&map=identifiability&a=4")
    assert page.inner_text("#explorer-about").startswith("7 ·")
    where = "image token, row 1, column 3, after block 2"
    assert page.inner_text("#explorer-token") == where
    names = run.manifest["model"]["classes"]
    assert page.input_value("#explorer-a") == names[4]
    page.click("#explorer-next")
    page.wait_for_url("**#image=8&block=2&map=identifiability&a=4")
    page.locator("#explorer-thumbs button").nth(3).click()
    page.wait_for_url("**#image=3&*")
    right = run["label"].values == run["prediction"].values
    page.select_option("#explorer-filter", "right")
    assert page.locator("#explorer-thumbs button").count() == right.sum()
    page.evaluate("location.hash = '#image=2&block=99&token=999&map=x&a=77&head=9'")
    sync_api.expect(page.locator("#explorer-about")).to_contain_text("2 ·")
    assert "row 7, column 7, after block 5" in page.inner_text("#explorer-token")


def test_rows_of_an_older_run(opened, run):
    page = opened("old")
    assert not page.locator("#explorer-a").is_visible()
    page.get_by_role("button", name="block 2").click()
    assert "rank of the label" in page.inner_text("#explorer-values")
    listed = page.locator("#explorer-quantity option").count()
    assert listed == 6  # rank, identifiability, top class, attention, relevancy, gap


def test_names_are_text(opened, run):
    page = opened()
    image = int(np.flatnonzero(run["label"].values == 0)[0])
    page.evaluate(f"location.hash = '#image={image}'")
    about = page.locator("#explorer-about")
    sync_api.expect(about).to_contain_text(f"{image} ·")
    assert EVIL in page.inner_text("#explorer-about")
    assert page.title() != "run" and page.locator("#explorer-about img").count() == 0


def test_an_image_of_which_nothing_is_known(opened):
    page = opened("bare")
    assert "0 · a <b>.png · predicted" in page.inner_text("#explorer-about")
    assert page.locator("#explorer-picture").is_visible()
    assert not page.locator("#explorer-map").is_visible()


@pytest.mark.parametrize("scheme", ("light", "dark"))
def test_nothing_is_wider_than_a_phone(opened, scheme):
    for which, width in (("two", 1280), ("two", 390), ("bare", 390), ("one", 390)):
        page = opened(which, width=width, scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        cut = """() => [...document.querySelectorAll("main svg, main img")]
          .filter((one) => !one.closest(".thumbs"))  // which scroll
          .filter((one) => one.getBoundingClientRect().right > innerWidth).length"""
        assert page.evaluate(cut) == 0
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    bright = np.mean([int(part) for part in re.findall(r"\d+", ground)[:3]])
    assert (bright > 128) == (scheme == "light")


def test_contents_stand_beside_and_pictures_come_early(opened):
    page = opened(width=1280)
    contents = page.locator("#contents a")
    assert contents.first.is_visible()
    first = page.locator("#explorer-stage").bounding_box()
    assert first["y"] < 2 * 900
    contents.get_by_text("How it was computed").click()
    assert page.locator("#computed table").first.is_visible()
    assert contents.first.bounding_box()["y"] >= 0  # sticky
    phone = opened(width=390)
    assert not phone.locator("#contents a").first.is_visible()
    phone.get_by_text("Contents", exact=True).click()
    phone.get_by_role("link", name="Tables").click()
    assert phone.locator("#tables").bounding_box()["y"] < 200
    assert not phone.locator("#contents a").first.is_visible()


def test_two_runs_side_by_side(opened):
    page = opened("both")
    about = page.locator("#explorer-about")
    page.locator("#explorer-thumbs button").nth(3).click()
    sync_api.expect(about).to_contain_text(re.compile(r"^3 ·"))
    page.select_option("#explorer-run", "1")
    sync_api.expect(about).to_contain_text(re.compile(r"^3 ·"))
    classes = page.locator("#explorer-classes li span")
    sync_api.expect(classes).to_have_count(0)  # `identifiability` keeps none of tokens
    assert "rank of the label" in page.inner_text("#explorer-values")


def test_the_explorer_works_in_a_notebook(opened, run):
    page = opened("notebook")
    page.get_by_role("button", name="block 2").click()
    page.get_by_role("button", name="[CLS]").click()
    assert page.inner_text("#explorer-token") == "[CLS], after block 2"
    image = shown_image(page)
    assert shown_classes(page) == expected_classes(run, image, 2, 0)


def test_tables_sort(opened):
    page = opened("two")
    table = page.locator("#table-summary table.numbers")
    column = table.locator("th").nth(1)
    for way in ("ascending", "descending"):
        column.get_by_role("button").click()
        assert column.get_attribute("aria-sort") == way
        texts = table.locator("td:nth-child(2)").all_inner_texts()
        numbers = [float(t.split()[0].replace("−", "-")) for t in texts if t != "–"]
        assert numbers == sorted(numbers, reverse=way == "descending")
    assert len(numbers) > 4
