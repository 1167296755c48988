"""Maps laid over photos: their colors, their layout, the forms that `show` takes."""

import io

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

import vitjax
from vitjax.report import overlays
from vitjax.report.overlays import Panel, Scale, draw_grid, show

PHOTO = np.full((48, 48, 3), 128, np.uint8)
SIGNED_MAP = np.linspace(-1, 3, 16).reshape(4, 4)
POSITIVE_MAP = np.linspace(0, 1, 16).reshape(4, 4)


def pixels_of(figure, dpi=50):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    with Image.open(buffer) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def images_of(figure):
    """The images of a figure, color bars left out."""
    (axes,) = figure.axes
    arrays = [np.asarray(image.get_array()) for image in axes.images]
    return [array for array in arrays if array.shape[0] > 2]


def texts_of(figure):
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("percentile", (98, 100))
def test_strong_values_hide_the_photo_and_weak_ones_show_it(percentile):
    options = {"percentile": percentile, "opacity": 0.75}
    scale = overlays.scale_of(SIGNED_MAP, signed=True, **options)
    assert scale.low == -scale.high and scale.signed
    values = np.array([[-scale.high, 0.0, scale.high]])
    negative, zero, positive = scale.blend(PHOTO[:1, :3], values)[0].astype(int)
    np.testing.assert_allclose(zero, overlays.mute(PHOTO)[0, 0], atol=1)
    assert negative[2] > negative[0] + 40 and positive[0] > positive[2] + 40
    scale = overlays.scale_of(POSITIVE_MAP, signed=False, **options)
    ends = scale.blend(PHOTO[:1, :2], np.array([[scale.low, scale.high]]))[0]
    np.testing.assert_array_equal(ends[0], PHOTO[0, 0])
    assert np.abs(ends[1].astype(int) - PHOTO[0, 0]).max() > 40


def test_outliers_do_not_decide_the_colors():
    values = np.r_[np.linspace(0, 1, 199), 1000.0].reshape(10, 20)
    options = {"percentile": 98, "opacity": 1}
    for signed in (True, False):
        assert overlays.scale_of(values, signed=signed, **options).high < 1.1
    sparse = np.zeros((10, 10))
    sparse[3, 4] = 2.0  # both percentiles are 0
    for signed in (True, False):
        assert overlays.scale_of(sparse, signed=signed, **options).high == 2


@pytest.mark.parametrize("style", ("overlay", "patches"))
@pytest.mark.parametrize("value", (0.0, 3.0, np.nan, -1.0))
def test_constant_and_undefined_maps_have_one_color(value, style):
    _, drawn = images_of(show(PHOTO, np.full((2, 3), value), style=style))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 1


def test_patches_are_squares_and_overlays_are_smooth():
    def colors(style):
        _, drawn = images_of(show(PHOTO, POSITIVE_MAP, style=style))
        return len(np.unique(drawn.reshape(-1, 3), axis=0))

    assert colors("patches") <= 16 < colors("overlay")


def test_colors_are_the_methods_whatever_a_single_map_holds():
    positive = {"occlusion": POSITIVE_MAP, "chefer": POSITIVE_MAP}
    assert texts_of(show(PHOTO, positive)).count("0") == 1  # amid a bar of both signs
    with_words = texts_of(show(PHOTO, positive))
    assert "occlusion" in with_words and "Chefer et al. 2021" in with_words
    both = [{"mine": POSITIVE_MAP}, {"mine": SIGNED_MAP}]
    assert texts_of(show(PHOTO, both)).count("0") == 2
    assert texts_of(show(PHOTO, both, signed=False)).count("0") == 0


@pytest.mark.parametrize(
    ("image", "maps", "rows", "panels"),
    [
        (PHOTO, POSITIVE_MAP, 1, 2),
        (PHOTO, POSITIVE_MAP.ravel(), 1, 2),
        (Image.fromarray(PHOTO), {"a": POSITIVE_MAP, "b": POSITIVE_MAP}, 1, 3),
        ([PHOTO, PHOTO[:24]], {"a": np.stack([POSITIVE_MAP] * 2)}, 2, 4),
        (np.stack([PHOTO] * 3), np.ones((3, 16)), 3, 6),
        (PHOTO, [{"a": POSITIVE_MAP}, {"b": POSITIVE_MAP}], 2, 3),
        ([PHOTO, PHOTO], [{"a": POSITIVE_MAP}, {"b": POSITIVE_MAP}], 2, 4),
    ],
)
def test_images_are_rows_and_maps_are_columns(image, maps, rows, panels):
    figure = show(image, maps)
    assert len(images_of(figure)) == panels
    lows = {image.get_extent()[2] for image in figure.axes[0].images[::2]}
    assert len(lows) >= rows


def test_grids_that_are_not_square_are_given():
    (_, drawn) = images_of(show(PHOTO, np.arange(8.0), grid=(2, 4), style="patches"))
    np.testing.assert_array_equal(drawn[0, 0], drawn[drawn.shape[0] // 2 - 1, 0])
    with pytest.raises(ValueError, match="8 patches"):
        show(PHOTO, np.arange(8.0))


def test_a_shared_scale_has_one_bar():
    maps = {f"block {n}": n * POSITIVE_MAP for n in range(1, 9)}
    figure = show(PHOTO, maps, shared=True, columns=4)
    assert len(figure.axes[0].images) == 1 + 8 + 1
    assert len(show(PHOTO, maps).axes[0].images) == 1 + 8 + 8
    faint, strong = images_of(figure)[1], images_of(figure)[-1]
    moved = [np.abs(each.astype(int) - 128).mean() for each in (faint, strong)]
    assert moved[0] < moved[1] / 4


@pytest.mark.parametrize("width", (3.0, 5.5))
def test_a_figure_has_the_width_that_is_given(width):
    maps = {"a": POSITIVE_MAP, "b": SIGNED_MAP}
    assert show(PHOTO, maps, width=width).get_size_inches()[0] == pytest.approx(width)
    with pytest.raises(ValueError, match="width=0.1"):
        show(PHOTO, maps, width=0.1)


@pytest.mark.parametrize("kind", ("png", "pdf", "svg"))
def test_figures_are_written_in_formats_of_papers(kind, tmp_path):
    path = tmp_path / f"maps.{kind}"
    show(PHOTO, POSITIVE_MAP, titles="a $ b").savefig(path, dpi=50)
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[kind]
    assert path.read_bytes().startswith(start)


def test_a_notebook_shows_a_figure():
    assert show(PHOTO, POSITIVE_MAP)._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("image", "maps", "options", "hint"),
    [
        (PHOTO / 255, POSITIVE_MAP, {}, "denormalize"),
        (PHOTO, {}, {}, "at least one map"),
        (PHOTO, np.ones((2, 2, 4, 4)), {}, r"\(2, 2, 4, 4\)"),
        ([PHOTO] * 2, np.ones((3, 16)), {}, "3 images"),
        ([PHOTO] * 2, [{"a": POSITIVE_MAP}], {}, "2 images"),
        (PHOTO, POSITIVE_MAP, {"titles": ["a", "b"]}, "2 titles"),
        (PHOTO, POSITIVE_MAP, {"opacity": 2.0}, "opacity"),
        (PHOTO, POSITIVE_MAP, {"percentile": 3.0}, "percentile"),
    ],
)
def test_what_does_not_fit_is_named(image, maps, options, hint):
    with pytest.raises(ValueError, match=hint):
        vitjax.show(image, maps, **options)


def test_words_and_bars_stay_within_the_figure():
    """Long class names wrap; nothing is drawn over another panel or the edge."""
    words = "black-and-tan coonhound or " * 3
    scale = Scale("viridis", 0, 1, words="a label")
    rows = [[Panel(PHOTO, words), Panel(PHOTO, words)]]
    figure = draw_grid(rows, scale=scale)
    renderer, box = FigureCanvasAgg(figure).get_renderer(), figure.bbox
    for text in figure.axes[0].texts:
        inside = text.get_window_extent(renderer)
        assert box.x0 <= inside.x0 and inside.x1 <= box.x1
        assert box.y0 <= inside.y0 and inside.y1 <= box.y1
    left, right = figure.axes[0].texts[:2]
    assert left.get_window_extent(renderer).x1 <= right.get_window_extent(renderer).x0
    pixels = pixels_of(figure)
    assert pixels[:2].min() == pixels[-2:].min() == 255
