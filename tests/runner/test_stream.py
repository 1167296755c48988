"""Rows equal a direct computation, and stops at any moment leave no trace."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import vitjax
from vitjax.checkpoints.loading import init
from vitjax.data.images import ImageError
from vitjax.data.records import Record
from vitjax.data.textured_digits import CLASSES
from vitjax.recipes.recipe import Recipe
from vitjax.runner import buffer, folder, job, processes, stream
from vitjax.runner.results import open_results
from vitjax.runner.storage import StorageError


def go(model, photos, out, **options):
    options = {"batch_size": 8, "show_progress": False} | options
    return stream.run("identifiability", model, f"folder:{photos}", out, **options)


def pictures(photos):
    loaded = []
    for path in sorted(photos.glob("*/*.png")):
        with Image.open(path) as image:
            loaded.append(np.array(image))
    return loaded


def test_rows_equal_a_direct_computation(tiny, photos, whole):
    images = np.stack([tiny.preprocess(image) for image in pictures(photos)])
    names = [path.parent.name for path in sorted(photos.glob("*/*.png"))]
    label = np.array([tiny.classes.index(name) for name in names], np.int32)
    streams = ("residual", "attention_update", "mlp_update")
    logits, trace = vitjax.forward(tiny, images, capture=streams)
    np.testing.assert_array_equal(whole["label"][:], label)
    np.testing.assert_array_equal(whole["prediction"][:], logits.argmax(-1))
    assert whole["valid"][:].all() and whole["done"][:].all()
    for name in streams:
        states = np.moveaxis(np.asarray(getattr(trace, name)), 0, 1)
        projected = np.asarray(vitjax.project(tiny.class_space, states))
        true = np.take_along_axis(projected, label[:, None, None, None], -1)[..., 0]
        np.testing.assert_allclose(whole[f"logit_{name}"][:], true, atol=1e-5)
        gap = np.abs(projected - true[..., None])
        close = ((gap > 0) & (gap < 1e-5)).any(-1)
        expected = (projected > true[..., None]).sum(-1)
        found = whole[f"rank_{name}"][:]
        np.testing.assert_array_equal(found[~close], expected[~close])
        assert close.mean() < 0.05 and found.max() > 0
    readout = vitjax.project(tiny.class_space, np.asarray(trace.residual)[:, :, 0])
    best = vitjax.top_k(np.moveaxis(np.asarray(readout), 0, 1), k=5)
    np.testing.assert_allclose(whole["top_logits"][:], best.logits, atol=1e-5)
    agree = whole["top_classes"][:] == np.asarray(best.classes)
    assert agree.mean() > 0.99
    np.testing.assert_array_equal(whole["top_classes"][:, -1, 0], whole["prediction"])


def test_arrays_have_the_promised_names_and_types(whole):
    xarray = pytest.importorskip("xarray")
    path = f"{whole.path}/rows.zarr"
    dataset = xarray.open_zarr(path, consolidated=False)
    for name in ("residual", "attention_update", "mlp_update"):
        assert dataset[f"rank_{name}"].dims == ("image", "layer", "token")
        assert dataset[f"rank_{name}"].dtype == np.int32
        assert dataset[f"logit_{name}"].dtype == np.float32
    assert dataset["top_classes"].dims == ("image", "layer", "top")
    assert dict(dataset.sizes)["image"] == 29
    assert set(dataset.coords) == {"image", "layer", "token", "top"}
    np.testing.assert_array_equal(dataset.coords["token"], np.arange(17))
    by_label = dataset["rank_residual"].sel(layer=1, token=0).groupby(dataset["label"])
    assert by_label.mean().shape == (6,)


def test_the_manifest_says_what_was_run(tiny, photos, whole):
    manifest = open_results(whole.path).manifest
    assert manifest == json.loads(json.dumps(manifest)) == whole.manifest
    assert manifest["model"]["config"] == dataclasses.asdict(tiny.config)
    assert manifest["model"]["classes"] == list(tiny.classes)
    assert manifest["data"]["images"] == 29 and manifest["data"]["id"]
    assert manifest["batch_size"] == 8 and manifest["matmul_precision"] == "highest"
    assert manifest["finished"] >= manifest["created"]
    assert manifest["images_per_second"] > 0
    assert manifest["versions"]["jax"] == jax.__version__
    assert manifest["devices"]["count"] == 4
    assert manifest["arrays"]["rank_residual"] == ["image", "layer", "token"]


def test_images_csv_names_every_image(photos, whole):
    with open(f"{whole.path}/images.csv") as file:
        lines = file.read().splitlines()
    assert lines[:2] == ["index,name,label_name,label", "0,ant/00.png,ant,0"]
    assert lines[-1] == "28,fox/23.png,fox,5" and len(lines) == 30


def test_the_first_images_are_kept_as_the_model_saw_them(tiny, photos, whole):
    expected = [tiny.preprocess.resized(image) for image in pictures(photos)[:8]]
    np.testing.assert_array_equal(whole["picture"][:], np.stack(expected))
    np.testing.assert_array_equal(whole["picture_image"][:], np.arange(8))


class Stop(BaseException):
    """What no handler expects."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stop, RuntimeError])
@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_stop_between_batches_loses_nothing(
    tiny, photos, whole, tmp_path, monkeypatch, same_rows, error, after
):
    parts = []
    take = buffer.Buffer.add

    def add(self, part):
        if len(parts) == after:
            raise error
        parts.append(part.start)
        take(self, part)

    monkeypatch.setattr(buffer.Buffer, "add", add)
    with pytest.raises(error) as caught:
        go(tiny, photos, tmp_path)
    assert f"{8 * after} of 29 images are done and kept" in caught.value.__notes__[0]
    stopped = open_results(tmp_path)
    assert stopped.manifest["finished"] is None
    assert stopped["done"][:].sum() == 8 * after
    monkeypatch.setattr(buffer.Buffer, "add", take)
    starts = watch_starts(monkeypatch)
    same_rows(go(tiny, photos, tmp_path), whole)
    assert starts == [8 * after]


def watch_starts(monkeypatch):
    starts = []
    load = job.batches

    def batches(*arguments, **options):
        starts.append(options["start"])
        return load(*arguments, **options)

    monkeypatch.setattr(job, "batches", batches)
    return starts


def test_a_stop_between_pictures_and_done_repeats_no_picture(
    tiny, photos, whole, tmp_path, monkeypatch, same_rows
):
    monkeypatch.setattr(buffer, "FLUSH_SECONDS", 0.0)
    write_rows = folder.Run.write_rows
    monkeypatch.setattr(folder.Run, "write_rows", failing)
    with pytest.raises(Stop):
        go(tiny, photos, tmp_path)
    assert (open_results(tmp_path)["picture_image"][:] >= 0).any()
    monkeypatch.setattr(folder.Run, "write_rows", write_rows)
    same_rows(go(tiny, photos, tmp_path), whole)


def failing(*arguments):
    raise Stop


def test_holes_are_filled(tiny, photos, whole, tmp_path, monkeypatch, same_rows):
    shutil.copytree(whole.path, tmp_path / "run")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    manifest["finished"] = None
    (tmp_path / "run/manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(tmp_path / "run/rows.zarr/done/c")
    half = go_partly(tmp_path / "run", [slice(0, 8), slice(16, 24)])
    assert half["done"][:].sum() == 16
    starts = watch_starts(monkeypatch)
    same_rows(go(tiny, photos, tmp_path / "run"), whole)
    assert starts == [8, 24]


def go_partly(path, ranges):
    results = open_results(path)
    for chosen in ranges:
        results["done"].store[chosen].write(True).result()
    return results


def test_a_full_disk_keeps_what_was_written(
    tiny, photos, whole, tmp_path, monkeypatch, same_rows
):
    monkeypatch.setattr(buffer, "FLUSH_SECONDS", 0.0)
    write = folder.Run.write
    calls = []

    def full(self, parts):
        calls.append(parts)
        if len(calls) > 5:
            raise StorageError("Cannot write rows: No space left on device. Make room.")
        write(self, parts)

    monkeypatch.setattr(folder.Run, "write", full)
    with pytest.raises(StorageError, match="No space left") as caught:
        go(tiny, photos, tmp_path)
    assert "16 of 29 images are done" in caught.value.__notes__[0]
    monkeypatch.setattr(folder.Run, "write", write)
    same_rows(go(tiny, photos, tmp_path), whole)


def test_a_finished_run_is_returned_at_once(
    tiny, photos, whole, monkeypatch, same_rows
):
    monkeypatch.setattr(job.Job, "step", failing)
    found = go(tiny, photos, whole.path)
    same_rows(found, whole)
    assert found.manifest == whole.manifest


def test_another_run_is_refused(tiny, photos, whole, tmp_path):
    other = init(tiny.config, classes=tiny.classes, seed=1)
    with pytest.raises(ValueError, match="model.parameters_sha256 is"):
        go(other, photos, whole.path)
    with pytest.raises(ValueError, match="batch_size is 8 there and 16 here"):
        go(tiny, photos, whole.path, batch_size=16)
    with pytest.raises(ValueError, match="dtype"):
        go(tiny, photos, whole.path, dtype="bfloat16")
    with pytest.raises(ValueError, match="data.images is 29 there and 9 here"):
        go(tiny, photos, whole.path, limit=9)
    shutil.copytree(photos, tmp_path / "more")
    shutil.copy(tmp_path / "more/ant/00.png", tmp_path / "more/ant/99.png")
    with pytest.raises(ValueError, match="data.id"):
        go(tiny, tmp_path / "more", whole.path)


def test_a_copy_of_the_same_run_may_go_on_elsewhere(
    tiny, photos, whole, tmp_path, same_rows
):
    shutil.copytree(photos, tmp_path / "moved")
    shutil.copytree(whole.path, tmp_path / "run")
    found = go(tiny, tmp_path / "moved", tmp_path / "run")
    same_rows(found, whole)
    assert found.path == str(tmp_path / "run") and found.manifest["finished"]


@pytest.fixture
def broken(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "broken")
    path = tmp_path / "broken/cat/20.png"
    path.write_bytes(path.read_bytes()[:100])
    return tmp_path / "broken"


def test_a_broken_image_stops_the_run_and_skip_goes_on(
    tiny, photos, whole, broken, tmp_path
):
    with pytest.raises(ImageError, match="cat/20.png") as caught:
        go(tiny, broken, tmp_path / "run")
    order = [path.name for path in sorted(photos.glob("*/*.png"))]
    place = order.index("20.png")
    before = place // 8 * 8
    assert "--on-error skip" in caught.value.__notes__[0]
    assert f"{before} of 29 images are done" in caught.value.__notes__[1]
    found = go(tiny, broken, tmp_path / "run", on_error="skip")
    skipped = found.manifest["skipped"]
    assert [(s["index"], s["name"]) for s in skipped] == [(place, "cat/20.png")]
    assert skipped[0]["reason"]
    assert found.manifest == open_results(tmp_path / "run").manifest
    assert not found["valid"][place] and found["done"][place]
    assert found["label"][place] == found["prediction"][place] == -1
    assert (found["rank_mlp_update"][place] == -1).all()
    assert np.isnan(found["logit_residual"][place]).all()
    others = np.arange(29) != place
    for name in ("rank_residual", "logit_residual", "prediction", "label"):
        np.testing.assert_array_equal(found[name][others], whole[name][others])


def test_images_without_a_label_have_predictions_but_no_ranks(tiny, tmp_path):
    for number in range(3):
        Image.new("RGB", (32, 32), (number, 9, 9)).save(tmp_path / f"{number}.png")
    found = go(tiny, tmp_path, tmp_path / "run")
    assert (found["label"][:] == -1).all() and found["valid"][:].all()
    assert (found["rank_residual"][:] == -1).all()
    assert np.isnan(found["logit_residual"][:]).all()
    assert (found["prediction"][:] >= 0).all() and (found["top_classes"][:] >= 0).all()


def test_masks_become_token_classes(tiny, tmp_path):
    model = init(
        vitjax.Config(64, 16, dim=16, depth=1, heads=2, mlp_dim=16),
        classes=CLASSES,
    )
    found = stream.run(
        "identifiability",
        model,
        "textured_digits",
        tmp_path,
        limit=10,
        batch_size=8,
        show_progress=False,
    )
    kinds = found["patch_label"][:]
    assert found["patch_label"].dims == ("image", "patch")
    assert kinds.dtype == np.int8 and kinds.shape == (10, 16)
    assert set(np.unique(kinds)) == {0, 1}
    assert found.manifest["data"]["spec"] == "textured_digits"


class SomeMasks:
    """Pictures of which only one has a mask, and none says so beforehand."""

    id = "some-masks/1"

    def __len__(self):
        return 20

    def __getitem__(self, index):
        pixels = np.full((32, 32, 3), index, np.uint8)
        mask = np.ones((32, 32), bool) if index in (0, 9) else None
        return Record(image=pixels, label=index % 6, name=f"{index}", mask=mask)


def count_traces():
    traces = []

    def step(model, batch):
        traces.append(batch)
        logits, _ = vitjax.forward(model, batch.images)
        return {"best": logits.argmax(-1).astype(np.int32)}

    return Recipe(name="best", step=step, dims={"best": ()}), traces


def test_one_program_serves_all_batches_and_runs(tiny, tmp_path):
    recipe, traces = count_traces()
    options = {"batch_size": 8, "show_progress": False}
    found = stream.run(recipe, tiny, SomeMasks(), tmp_path / "a", **options)
    assert (found["patch_label"][0] == 1).all() and (
        found["patch_label"][1] == -1
    ).all()
    assert (found["patch_label"][9] == 1).all() and (
        found["patch_label"][19] == -1
    ).all()
    once = len(traces)
    stream.run(recipe, tiny, SomeMasks(), tmp_path / "b", **options)
    assert len(traces) == once <= 2  # one for the shapes, one for the program
    assert found["best"].shape == (20,) and "rank_residual" not in found


def test_a_buffer_holds_no_more_than_a_chunk(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "CHUNK_BYTES", 3 * 8 * 2 * 17 * 4)  # three batches
    held = []
    add = buffer.Buffer.add

    def watch(self, part):
        add(self, part)
        held.append(len(self.parts))

    monkeypatch.setattr(buffer.Buffer, "add", watch)
    stream.run(
        "identifiability",
        tiny,
        LongSource(200),
        tmp_path,
        batch_size=8,
        show_progress=False,
    )
    assert max(held) == 2 and held.count(0) == 8


class LongSource(SomeMasks):
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length


def test_one_device_gives_the_rows_of_four(tiny, photos, whole, tmp_path, monkeypatch):
    make = job.meshes.make_mesh
    monkeypatch.setattr(job.meshes, "make_mesh", lambda: make(jax.devices()[:1]))
    found = go(tiny, photos, tmp_path, batch_size=7)
    assert found.manifest["batch_size"] == 7
    for name in whole.names:
        np.testing.assert_allclose(found[name][:], whole[name][:], atol=1e-5)


def test_a_run_goes_on_with_other_devices(tiny, photos, whole, tmp_path, monkeypatch):
    """Begun in batches of 8 over four devices, the same call goes on in sevens."""
    take = buffer.Buffer.add

    def add(self, part):
        if part.start == 16:
            raise Stop
        take(self, part)

    monkeypatch.setattr(buffer.Buffer, "add", add)
    with pytest.raises(Stop):
        go(tiny, photos, tmp_path, batch_size=7)
    monkeypatch.setattr(buffer.Buffer, "add", take)
    make = job.meshes.make_mesh
    monkeypatch.setattr(job.meshes, "make_mesh", lambda: make(jax.devices()[:1]))
    starts = watch_starts(monkeypatch)
    found = go(tiny, photos, tmp_path, batch_size=7)
    assert starts == [14] and found.manifest["batch_size"] == 7
    for name in whole.names:
        np.testing.assert_allclose(found[name][:], whole[name][:], atol=1e-5)


def test_bfloat16_comes_close(tiny, photos, whole, tmp_path):
    found = go(tiny, photos, tmp_path, dtype="bfloat16", limit=8)
    assert found.manifest["dtype"] == "bfloat16"
    assert found["logit_residual"].dtype == np.float32
    left, right = found["logit_residual"][:], whole["logit_residual"][:8]
    np.testing.assert_allclose(left, right, atol=0.02)
    assert np.abs(left - right).max() > 0


@pytest.fixture
def older(whole, tmp_path):
    """An unfinished run of another version of JAX; its manifest's path."""
    shutil.copytree(whole.path, tmp_path / "run")
    path = tmp_path / "run/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["finished"] = None
    manifest["versions"]["jax"] = "0.0.1"
    path.write_text(json.dumps(manifest))
    return path


def test_versions_that_change_under_way_are_recorded(tiny, photos, older, capsys):
    found = go(tiny, photos, older.parent, show_progress=True)
    assert "jax was 0.0.1" in capsys.readouterr().err
    (session,) = found.manifest["resumed"]
    assert session["versions"]["jax"] == jax.__version__


def test_a_session_that_is_stopped_too_is_recorded(tiny, photos, older, monkeypatch):
    monkeypatch.setattr(stream, "write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        go(tiny, photos, older.parent)
    (session,) = json.loads(older.read_text())["resumed"]
    assert session["versions"]["jax"] == jax.__version__


def test_objects_that_vanish_are_named(tiny, tmp_path):
    """Two pictures; the mask of one marks a single pixel."""
    for name, size in (("large", 20), ("small", 1)):
        mask = np.zeros((32, 32), np.uint8)
        mask[:size, :size] = 1
        Image.fromarray(mask).save(tmp_path / f"{name}_mask.png")
        Image.new("RGB", (32, 32)).save(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text(
        "path,label,mask\nlarge.png,0,large_mask.png\nsmall.png,0,small_mask.png\n"
    )
    options = dict(batch_size=4, show_progress=False)
    data = f"csv:{tmp_path / 't.csv'}"
    found = stream.run("identifiability", tiny, data, tmp_path / "run", **options)
    assert found.manifest["vanished"] == [{"index": 1, "name": "small.png"}]
    assert found.manifest["masks"] == {"convention": "area", "threshold": 0.5}
    options["mask_convention"] = "vilas2023_code"
    with pytest.raises(ValueError, match="masks.convention"):
        stream.run("identifiability", tiny, data, tmp_path / "run", **options)
    found = stream.run("identifiability", tiny, data, tmp_path / "other", **options)
    assert found.manifest["vanished"] == []
    assert found["patch_label"][1].tolist() == [1] + [0] * 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"limit": 0}, "limit is 0"),
        ({"recipe": "nothing"}, "no recipe 'nothing'"),
        ({"data": "folder:/nowhere"}, "no folder"),
        ({"model": "vit_xxl"}, "vit_xxl"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(tiny, photos, tmp_path, options, message):
    options = {
        "recipe": "identifiability",
        "model": tiny,
        "data": f"folder:{photos}",
        "out": tmp_path / "run",
        "show_progress": False,
    } | options
    with pytest.raises(ValueError, match=message):
        stream.run(**options)
    assert not (tmp_path / "run").exists()


def test_who_waits_for_others_says_what_is_kept_too(
    tiny, photos, tmp_path, monkeypatch
):
    """A process may have done its own part when another is lost."""

    def meet(group, place):
        if place == "written":
            raise processes.PeerError("Process 1 of 2 is gone.")

    monkeypatch.setattr(processes.Group, "meet", meet)
    with pytest.raises(processes.PeerError) as caught:
        go(tiny, photos, tmp_path)
    (note,) = caught.value.__notes__
    assert note.startswith(f"29 of 29 images are done and kept in {tmp_path}")
