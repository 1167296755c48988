"""A run: its rows, its manifest, how it is resumed, and what it refuses."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import time

import fake_bucket
import jax
import jax.numpy as jnp
import numpy as np
import obstore.store
import pytest
import xarray
import zarr
from photos import BATCH, CLASSES, TINY
from PIL import Image

import vitjax
from vitjax.data.images import ImageError
from vitjax.recipes import schema
from vitjax.recipes.recipe import Pass, Recipe, Setup
from vitjax.runner import loop, writer
from vitjax.runner import mesh as meshes
from vitjax.runner.manifest import describe_model, hash_parameters
from vitjax.runner.options import BATCH_SIZE, SMALL_BATCH_SIZE, RunOptions
from vitjax.runner.progress import Progress, clock_time
from vitjax.runner.store import DamageError, Folder, StorageError, storage_errors

STREAMS = tuple(schema.STREAMS)


def files_of(out):
    """Relative path -> bytes of everything that is a function of the manifest."""
    root = pathlib.Path(out)
    paths = [path for path in root.rglob("*") if path.is_file()]
    names = {str(path.relative_to(root)): path for path in paths}
    return {
        name: p.read_bytes() for name, p in names.items() if name != "manifest.json"
    }


def assert_same_rows(results, expected):
    assert results.names == expected.names
    for name in expected.names:
        left, right = results[name].values, expected[name].values
        assert left.dtype == right.dtype and left.tobytes() == right.tobytes(), name


@pytest.fixture
def steps(monkeypatch):
    """Indices of the images of every step that is taken."""
    taken, step = [], loop.Job.step

    def counted(self, part, batch, carry):
        taken.append(np.unique(batch.index[batch.valid]).tolist())
        return step(self, part, batch, carry)

    monkeypatch.setattr(loop.Job, "step", counted)
    return taken


class Stopped(Exception):
    pass


@contextlib.contextmanager
def stop_after(chunks):
    """Raise when so many chunks are written."""
    write, count = writer.RunWriter.write_chunk, iter(range(chunks))

    def stopping(self, *arguments, **options):
        if next(count, None) is None:
            raise Stopped
        write(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer.RunWriter, "write_chunk", stopping)
        with pytest.raises(Stopped) as info:
            yield info


# What a run writes.


def test_rows_equal_a_direct_computation(tiny, photos, whole):
    source = vitjax.data.datasets.open_data(f"folder:{photos}", tiny)
    records = [source[index] for index in range(len(source))]
    preprocess = vitjax.Preprocess(*TINY.shape)
    images = np.stack([preprocess(record.image) for record in records])
    label = np.array([record.label for record in records])
    logits, trace = vitjax.forward(tiny, images, capture=STREAMS)
    for name in STREAMS:
        states = jnp.moveaxis(jnp.asarray(getattr(trace, name)), 0, 1)
        class_logits = vitjax.project(tiny.class_space, states)
        ranks = vitjax.rank(class_logits, label[:, None, None])
        np.testing.assert_array_equal(whole[schema.RANK(name)], ranks)
    np.testing.assert_array_equal(whole["prediction"], logits.argmax(-1))
    np.testing.assert_array_equal(whole["label"], label)
    # The first images are kept as the model saw them.
    np.testing.assert_array_equal(whole["preview_index"], range(8))
    shown = preprocess.denormalize(images[:8])
    np.testing.assert_array_equal(whole["preview_image"], shown)


def test_results_are_a_labelled_lazy_mapping(whole):
    assert isinstance(whole, xarray.Dataset) and isinstance(whole, vitjax.Results)
    ranks = whole["rank_residual"]
    assert ranks.dims == ("image", "layer", "token") and ranks.shape == (29, 2, 17)
    assert not ranks.variable._in_memory  # pyright: ignore
    assert ranks[:5, -1].shape == (5, 17) and set(whole.names) == set(whole)
    np.testing.assert_array_equal(whole["layer"], [0, 1])
    np.testing.assert_array_equal(ranks.sel(layer=1)[3], ranks.values[3, 1])
    wanted = np.array([4, 0, 28])
    np.testing.assert_array_equal(ranks[wanted, 0], ranks.values[wanted, 0])
    for name in whole.names:
        assert tuple(whole.manifest["arrays"][name]) == whole[name].dims
        if name != "done":
            assert whole[name].attrs["description"]
            assert whole[name].dims == schema.SCHEMA[name].axes
    assert "identifiability" in repr(whole) and len(repr(whole)) < 5000
    with pytest.raises(KeyError):
        whole["ranks"]
    rows = xarray.open_zarr(f"{whole.path}/rows.zarr", consolidated=False, chunks=None)
    np.testing.assert_array_equal(rows["rank_residual"], ranks)  # by any Zarr reader


def test_the_manifest_says_what_was_run(tiny, whole):
    manifest = json.loads(pathlib.Path(whole.path, "manifest.json").read_text())
    assert manifest == whole.manifest == whole.attrs
    assert manifest["model"] == describe_model(tiny) | {
        "config": manifest["model"]["config"]
    }
    assert vitjax.Config.from_dict(manifest["model"]["config"]) == TINY
    assert manifest["data"]["images"] == 29 and manifest["finished"]
    assert manifest["matmul_precision"] == "highest" and manifest["seed"] == 0
    assert manifest["images_per_second"] > 0 and manifest["images_per_chunk"] == BATCH
    assert manifest["versions"]["jax"] == jax.__version__
    table = pathlib.Path(whole.path, "images.csv").read_text().splitlines()
    assert table[0] == "index,name,label_name,label" and len(table) == 30
    assert table[1] == "0,ant/00.png,ant,0"


def test_parameters_are_hashed_by_name_shape_dtype_and_value():
    trees = [
        {"a": np.zeros(2, np.float32)},
        {"b": np.zeros(2, np.float32)},
        {"a": np.zeros((1, 2), np.float32)},
        {"a": np.zeros(2, np.int32)},
        {"a": np.ones(2, np.float32)},
    ]
    assert len({hash_parameters(tree) for tree in trees}) == len(trees)


def test_unreadable_and_unlabeled_images_hold_fill_values(
    run_tiny, own_photos, tmp_path
):
    names = sorted(str(p.relative_to(own_photos)) for p in own_photos.rglob("*.png"))
    lines = [
        f"{name},{name.split('/')[0] if i else ''}" for i, name in enumerate(names)
    ]
    table = own_photos / "table.csv"
    table.write_text("\n".join(["path,label", *lines]))
    unlabeled, lost = 0, 1
    (own_photos / names[lost]).write_bytes(b"no image")
    arguments = tmp_path / "run", f"csv:{table}"
    with pytest.raises(ImageError, match=names[lost]) as raised:
        run_tiny(*arguments)
    assert any("--on-error skip" in note for note in raised.value.__notes__)
    results = run_tiny(*arguments, on_error="skip")
    assert [line["name"] for line in results.manifest["skipped"]] == [names[lost]]
    assert (~results["valid"].values).nonzero()[0].tolist() == [lost]
    assert results["label"].values[[unlabeled, lost]].tolist() == [-1, -1]
    ranks, logits = results["rank_residual"].values, results["logit_residual"].values
    assert (ranks[[unlabeled, lost]] == -1).all() and np.isnan(logits[unlabeled]).all()
    assert (ranks[2:] >= 0).all() and np.isfinite(logits[2:]).all()
    assert results["prediction"].values[lost] == -1 < results["prediction"][unlabeled]
    assert results["preview_index"].values.tolist() == [0, -1, *range(2, 8)]
    # Repaired, it is run again by the same command, and nothing else is.
    Image.new("RGB", (40, 36)).save(own_photos / names[lost])
    results = run_tiny(*arguments, on_error="skip")
    assert results["valid"].values.all() and not results.manifest["skipped"]


def test_masks_become_labels_of_patches(run_tiny, tmp_path):
    for name, color in (("a", 255), ("b", 0)):
        Image.new("RGB", (32, 32), "red").save(tmp_path / f"{name}.png")
        mask = Image.new("L", (32, 32))
        mask.paste(color, (0, 0, 32, 16))
        mask.save(tmp_path / f"{name}-mask.png")
    rows = [f"{name}.png,ant,{name}-mask.png" for name in "ab"]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["path,label,mask", *rows]))
    results = run_tiny(tmp_path / "run", f"csv:{table}", batch_size=2)
    kinds = results["patch_label"].values
    assert kinds[0].tolist() == [1] * 8 + [0] * 8 and (kinds[1] == 0).all()
    assert results.manifest["no_object_tokens"] == [{"index": 1, "name": "b.png"}]
    assert results.manifest["masks"] == {"convention": "area", "threshold": 0.5}


@pytest.mark.slow
def test_bfloat16_comes_close(run_tiny, whole, tmp_path):
    results = run_tiny(tmp_path / "run", dtype="bfloat16")
    distance = abs(results["logit_residual"] - whole["logit_residual"])
    assert 0 < float(distance.max()) < 0.1
    assert results.manifest["matmul_precision"] == "default"


# Recipes of one's own.


@dataclasses.dataclass(frozen=True)
class Scale:
    factor: int = 2


def mean_pixel(model, batch, carry, *, factor):
    means = jnp.asarray(batch.images).mean((1, 2, 3)) * factor + carry["offset"]
    return {"mean_pixel": means, "position": jnp.asarray(batch.index)}


def offset(model, *, seed, factor):
    return Setup({"offset": jnp.float32(seed)}, {"table": jnp.arange(3.0) * factor})


OWN = Recipe(
    name="own",
    step=mean_pixel,
    setup=offset,
    dims={"mean_pixel": (), "position": ()},
    static={"table": ("entry",)},
    options=Scale(),
    benchmark=lambda model, batch, factor: {"batch": len(batch.label)},
)


def test_a_recipe_of_ones_own(run_tiny, tmp_path):
    results = run_tiny(tmp_path / "a", recipe=OWN, options={"factor": 3}, seed=5)
    np.testing.assert_array_equal(results["position"], range(29))
    np.testing.assert_array_equal(results["table"], [0, 3, 6])
    assert results.manifest["recipe_options"] == {"factor": 3}
    assert results.manifest["measured"] == {"batch": BATCH}
    plain = run_tiny(tmp_path / "b", recipe=OWN, options=Scale(1), seed=0)
    np.testing.assert_allclose(results["mean_pixel"], plain["mean_pixel"] * 3 + 5, 1e-5)
    with pytest.raises(ValueError, match="factr"):
        run_tiny(tmp_path / "c", recipe=OWN, options={"factr": 3})
    undeclared = dataclasses.replace(OWN, dims={"position": ()})
    with pytest.raises(ValueError, match="mean_pixel"):
        run_tiny(tmp_path / "d", recipe=undeclared)


def test_another_step_of_the_same_name_is_refused(run_tiny, tmp_path):
    run_tiny(tmp_path / "run", recipe=OWN)
    run_tiny(tmp_path / "run", recipe=dataclasses.replace(OWN))  # the same program
    table = np.arange(3.0, dtype=np.float32)
    changes = (
        {"step": lambda *a, factor: mean_pixel(*a, factor=factor + 1)},
        {"setup": lambda m, *, seed, factor: Setup({"offset": seed + jnp.zeros(())})},
        {"setup": lambda m, **_: Setup({"offset": jnp.zeros(())}, {"table": table})},
    )
    for change in changes:
        with pytest.raises(ValueError, match="recipe_sha256"):
            run_tiny(tmp_path / "run", recipe=dataclasses.replace(OWN, **change))
    path = tmp_path / "run" / "manifest.json"
    path.write_text(path.read_text().replace(jax.__version__, "0.0.1"))
    run_tiny(tmp_path / "run", recipe=dataclasses.replace(OWN, **changes[0]))


def halves(context):
    """Two passes that write the two halves of an axis, and one that reads them back."""

    def fill(model, batch, carry):
        return {"half": jnp.broadcast_to(carry, (len(batch.label), 2))}

    def check(model, batch, carry):
        return {"total": jnp.take(carry, batch.index, mode="clip")}

    shape = jax.ShapeDtypeStruct
    passes = [
        Pass(
            step=fill,
            dims={"half": ("side",)},
            setup=lambda value=value: Setup(jnp.int32(value)),
            carry_shape=shape((), jnp.int32),
            region={"side": (2 * value, 2 * value + 2)},
        )
        for value in range(2)
    ]
    last = Pass(
        step=check,
        dims={"total": ()},
        setup=lambda: Setup(jnp.asarray(context.rows("half").sum(1, dtype=np.int32))),
        carry_shape=shape((context.images,), jnp.int32),
    )
    return [*passes, last]


def test_a_recipe_of_several_passes(run_tiny, steps, tmp_path):
    recipe = Recipe(name="halves", passes=halves, dims={"half": ("side",), "total": ()})
    with stop_after(6):  # in the middle of the second pass
        run_tiny(tmp_path / "run", recipe=recipe)
    steps.clear()
    results = run_tiny(tmp_path / "run", recipe=recipe)
    np.testing.assert_array_equal(results["half"], np.tile([0, 0, 1, 1], (29, 1)))
    np.testing.assert_array_equal(results["total"], [2] * 29)
    assert len(steps) == 2 + 4  # what was left of the second pass, and the third


# Resuming.


def test_a_stopped_run_loses_no_more_than_its_chunk(run_tiny, whole, steps, tmp_path):
    with stop_after(2) as raised:
        run_tiny(tmp_path / "run")
    assert any("16 of 29 images are done" in note for note in raised.value.__notes__)
    partial = vitjax.open_results(tmp_path / "run")
    assert partial.pending.tolist() == list(range(16, 29))
    np.testing.assert_array_equal(partial["label"][:16], whole["label"][:16])
    with pytest.raises(DamageError):
        _ = partial["label"][:17].values
    steps.clear()
    results = run_tiny(tmp_path / "run")
    assert sum(steps, []) == list(range(16, 29))
    assert_same_rows(results, whole)
    assert files_of(tmp_path / "run") == files_of(whole.path)


@pytest.fixture
def copy(whole, tmp_path):
    """The folder of a copy of the uninterrupted run, to be damaged."""
    return shutil.copytree(whole.path, tmp_path / "run")


def test_a_finished_run_is_returned_without_a_step_or_a_write(
    run_tiny, steps, copy, whole, monkeypatch
):
    for name in ("write", "create", "delete"):
        monkeypatch.setattr(Folder, name, None)
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    assert_same_rows(run_tiny(copy), whole)
    assert before == {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    assert not steps


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("rank_residual/c/1/0/0", None),
        (
            "rank_residual/c/1/0/0",
            lambda content: bytes([content[0] ^ 1]) + content[1:],
        ),
        ("label/c/1", lambda content: b""),
        ("done/c/1", lambda content: content[:-3]),
    ],
    ids=["gone", "flipped", "empty", "cut"],
)
def test_a_lost_or_corrupt_chunk_is_pending_and_run_again(
    run_tiny, whole, steps, copy, damage, name
):
    path = copy / "rows.zarr" / name
    content = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(content))
    if not name.startswith("done"):
        reader = vitjax.open_results(copy)[name.split("/")[0]]
        _ = reader[:8].values  # the chunk before it
        with pytest.raises(DamageError, match="Chunk 1"):
            _ = reader[8:9].values
    run_tiny(copy)
    assert sum(steps, []) == list(range(8, 16))
    assert files_of(copy) == files_of(whole.path)


def test_corrupt_static_arrays_and_lost_metadata_are_written_again(
    run_tiny, steps, tmp_path
):
    run_tiny(tmp_path / "run", recipe=OWN)
    expected = files_of(tmp_path / "run")
    rows = tmp_path / "run" / "rows.zarr"
    (rows / "table" / "c" / "0").write_bytes(b"corrupt")
    (rows / "label" / "zarr.json").unlink()
    steps.clear()
    run_tiny(tmp_path / "run", recipe=OWN)
    assert files_of(tmp_path / "run") == expected and not steps


def test_another_run_is_refused_by_what_differs(run_tiny, whole, photos, copy):
    for options, difference in (
        ({"batch_size": 4}, "batch_size"),
        ({"limit": 8}, "limit"),
        ({"seed": 1}, "seed"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"options": {"top": 2}}, "recipe_options.top"),
        ({"recipe": "tokens"}, "recipe is"),
    ):
        with pytest.raises(ValueError, match=difference):
            run_tiny(whole.path, **options)
    weights, data = vitjax.init(TINY, classes=CLASSES, seed=1), f"folder:{photos}"
    with pytest.raises(ValueError, match="parameters_sha256"):
        vitjax.run("identifiability", weights, data, whole.path, batch_size=BATCH)
    (copy / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"manifest\.json"):
        run_tiny(copy)


def test_images_that_changed_since_are_refused_by_name(run_tiny, own_photos, tmp_path):
    arguments = tmp_path / "run", f"folder:{own_photos}"
    run_tiny(*arguments)
    path = own_photos / "bee" / "07.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"07\.png"):
        run_tiny(*arguments)


# Devices and processes.


def test_the_number_of_devices_changes_nothing_but_last_bits(
    run_tiny, whole, monkeypatch, tmp_path
):
    mesh = meshes.make_mesh(jax.local_devices()[:3])  # in batches of nine
    monkeypatch.setattr(meshes, "make_mesh", lambda devices=None: mesh)
    results = run_tiny(tmp_path / "run")
    np.testing.assert_array_equal(results["rank_residual"], whole["rank_residual"])
    np.testing.assert_allclose(
        results["logit_residual"], whole["logit_residual"], atol=1e-4
    )


def test_chunks_belong_to_processes_by_index(run_tiny, whole, steps, tmp_path):
    first = run_tiny(tmp_path / "run", process=(1, 3))
    assert first["done"].values.nonzero()[0].tolist() == list(range(8, 16))
    assert not first.manifest["finished"]
    run_tiny(tmp_path / "run", process=(0, 2))
    last = run_tiny(tmp_path / "run", process=(1, 2))
    assert last.manifest["finished"] and not len(last.pending)
    assert files_of(tmp_path / "run") == files_of(whole.path)
    with pytest.raises(ValueError, match="process"):
        run_tiny(tmp_path / "run", process=(2, 2))


def test_one_program_serves_all_batches_and_runs(run_tiny, tmp_path):
    traces = []

    def step(model, batch):
        traces.append(len(batch.label))
        return {"position": jnp.asarray(batch.index)}

    recipe = Recipe(name="count", step=step, dims={"position": ()})
    for out in "a", "b":
        run_tiny(tmp_path / out, recipe=recipe)
    assert traces.count(BATCH // jax.local_device_count()) == 1


def test_a_batch_is_no_larger_than_the_data_set(run_tiny, steps, tmp_path):
    results = run_tiny(tmp_path / "run", limit=3, batch_size=512)
    assert results.manifest["images_per_chunk"] == meshes.fit_batch_size(
        3, meshes.make_mesh()
    )
    assert steps == [[0, 1, 2]]


def test_steps_of_many_passes_are_small_on_cpus(tiny, photos):
    """Unless --batch-size says otherwise."""
    for name, given, size in (
        ("ablation", None, SMALL_BATCH_SIZE),
        ("ablation", 8, 8),
        ("identifiability", None, BATCH_SIZE),
    ):
        options = RunOptions(batch_size=given)
        job = loop.make_job(name, tiny, f"folder:{photos}", options=options)
        size = min(size, job.images)
        assert job.batch_size == meshes.fit_batch_size(size, job.mesh)


def test_chunks_are_whole_batches_and_some_for_every_process():
    def specs(width):
        return {"rank": writer.ArraySpec(("image", "x"), (10**6, width), "int32")}

    def chunk(**changes):
        known = {"images": 10**6, "batch_size": 32, "processes": 1}
        width = changes.pop("width", 8)
        return writer.images_per_chunk(specs(width), **(known | changes))

    assert chunk() == 32 * writer.CHUNK_BATCHES
    assert chunk(width=2**13) == 32 * (writer.CHUNK_BYTES // (32 * 4 * 2**13))
    assert chunk(images=10**4) == 160  # 313 batches
    assert chunk(images=320, processes=1) == chunk(images=320, processes=4) == 32
    assert chunk(images=1) == 32


# Stores.


def test_runs_live_in_any_object_store(run_tiny, whole):
    store = obstore.store.MemoryStore()
    assert_same_rows(run_tiny(store), whole)
    assert_same_rows(vitjax.open_results(store), whole)


@pytest.mark.slow
def test_runs_live_in_a_bucket(run_tiny, whole, tmp_path, monkeypatch):
    """obstore's own client of gs://, against the bucket's interface on this machine."""
    with fake_bucket.serve(tmp_path) as (objects, account):
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(account))
        monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
        assert_same_rows(run_tiny("gs://bucket/some/run"), whole)
        assert "some/run/manifest.json" in objects
        del objects["some/run/rows.zarr/label/c/1"]
        with pytest.raises(DamageError, match="label"):
            _ = vitjax.open_results("gs://bucket/some/run")["label"].values
        assert_same_rows(run_tiny("gs://bucket/some/run"), whole)


def test_urls_and_folders(tmp_path):
    assert Folder("gs://bucket/some/run").store.prefix == "some/run"
    assert Folder("s3://bucket/run").store.config["bucket"] == "bucket"
    for url in "gopher://x/run", "https://x/run":
        with pytest.raises(StorageError, match=url):
            Folder(url)
    with pytest.raises(StorageError, match="Make room"), storage_errors("write", "x"):
        raise obstore.exceptions.GenericError("No space left on device (os error 28)")
    Folder(f"file://{tmp_path}/a%20b").create("c", b"")
    assert (tmp_path / "a b" / "c").exists()
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StorageError, match="Cannot open"):
        Folder(file / "run")
    folder = Folder(tmp_path / "run")
    assert folder.read("a") is None and folder.list("") == []
    folder.create("a", b"1")
    folder.create("a", b"2")
    assert folder.read("a") == b"1"
    folder.write("a", b"3")
    assert folder.read("a") == b"3" and folder.list("") == ["a"]
    folder.delete(["a", "b"])
    assert folder.list("") == []


def test_what_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        vitjax.open_results(tmp_path)
    for content in ("no json", "[]", '{"format": "vitjax-run", "format_version": 1}'):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(ValueError, match=str(tmp_path)):
            vitjax.open_results(tmp_path)


def test_names_that_are_not_unicode(run_tiny, tmp_path):
    folder = tmp_path / "ant"
    folder.mkdir()
    name = folder / b"latin1-\xe9.png".decode(errors="surrogateescape")
    Image.new("RGB", (32, 32)).save(str(name))
    run_tiny(tmp_path / "run", f"folder:{tmp_path}")
    assert rb"latin1-\xe9.png" in (tmp_path / "run" / "images.csv").read_bytes()


# Options and progress.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("workers", -1),
        ("limit", 0),
        ("dtype", "float16"),
        ("on_error", "ignore"),
        ("mask_convention", "x"),
        ("mask_threshold", 0.0),
    ],
)
def test_options_out_of_range_are_named(name, value):
    # Literals are checked by jaxtyping here, and by RunOptions itself elsewhere.
    with pytest.raises((ValueError, TypeError), match=name.split("_")[-1]):
        RunOptions(**{name: value})
    with pytest.raises(TypeError, match="batchsize"):
        RunOptions(batchsize=3)  # pyright: ignore


def test_an_empty_data_set_and_unknown_names(run_tiny, tmp_path):
    (tmp_path / "ant").mkdir()
    with pytest.raises(ValueError):
        run_tiny(tmp_path / "run", f"folder:{tmp_path}")
    with pytest.raises(ValueError, match="identifiability"):
        run_tiny(tmp_path / "run", recipe="identifiabilty")


def test_the_rate_is_images_over_the_time_since_the_first_batch_came(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("vitjax.runner.progress.time.monotonic", lambda: now[0])
    rate = Progress(30)
    now[0], rate.state = 100.0, "compiling"
    assert rate.images_per_second is None
    assert str(rate) == "compiling, 0:01:40 elapsed"
    rate.start()
    assert str(rate) == "computing, 0:01:40 elapsed"
    now[0] = 102.0
    rate.start()  # the second batch
    rate.advance(10)
    assert rate.images_per_second == 5
    assert str(rate) == "5.0 images/s, 0:01:42 elapsed, 0:00:04 left"
    assert clock_time(3723) == "1:02:03"


def test_progress_is_lines_where_there_is_no_terminal(capsys):
    lines = {}
    for show in (False, True):
        with Progress(4, title="x", before=2, show=show, interval=0.01) as progress:
            progress.start()
            time.sleep(0.1)  # a batch that takes long
            progress.advance(4)
        lines[show] = capsys.readouterr().err.splitlines()
    assert not lines[False] and len(lines[True]) > 2
    assert lines[True][0].startswith("x: 2/6") and "x: 6/6" in lines[True][-1]
    assert any("2/6 images, computing" in line for line in lines[True])


def test_zarr_is_left_as_it_was():
    assert zarr.config.get("array.write_empty_chunks") is False
