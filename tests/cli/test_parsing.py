"""Words become commands: subcommands of recipes, lists, old names, misspelt ones."""

import dataclasses
import functools
import re
import shlex
import subprocess
import sys

import jax.numpy as jnp
import pytest

import vitjax
from vitjax.cli import main
from vitjax.cli.run import Run
from vitjax.recipes.faithfulness import FaithfulnessOptions
from vitjax.recipes.recipe import Recipe
from vitjax.recipes.registry import RECIPES
from vitjax.runner.options import RunOptions

BASE = ["--model", "m", "--data", "d", "--out", "o"]


def parse(*words, **options):
    return main.parse(words, **options)


def shown(capsys, *words, **options):
    """What is printed before the exit."""
    with pytest.raises(SystemExit) as caught:
        parse(*words, **options)
    assert caught.value.code == 0
    return capsys.readouterr().out


def mean(model, batch, *, power):
    """Raise the mean of an image to a power."""
    return {"mean": jnp.asarray(batch.images).mean((1, 2, 3)) ** power}


@dataclasses.dataclass(frozen=True)
class MeanOptions:
    """Options of `mean`.

    Args:
        power: of the mean.
    """

    power: float = 1.0


MEAN = Recipe(name="mean", step=mean, dims={"mean": ()}, options=MeanOptions())


def test_none_is_a_value_where_help_shows_it_as_the_default():
    for word, limit in (("None", None), ("3", 3)):
        command = parse("run", "identifiability", *BASE, "--limit", word)
        assert command.options == RunOptions(limit=limit)


@pytest.mark.parametrize("name", main.COMMANDS)
def test_the_example_of_a_command_parses(name):
    example = re.search(r"Example: vitjax (.+)", main.COMMANDS[name].__doc__)
    words = shlex.split(example[1])
    assert words[0] == name
    assert isinstance(parse(*words), main.COMMANDS[name])


def test_options_of_runs_and_recipes_are_flags():
    words = [*BASE, "--limit", "9", "--dtype", "bfloat16", "--steps", "4"]
    command = parse("run", "faithfulness", *words, "--target", "predicted")
    assert isinstance(command, Run) and command.recipe is RECIPES["faithfulness"]
    assert command.options == RunOptions(limit=9, dtype="bfloat16")
    expected = FaithfulnessOptions(steps=4, target="predicted")
    assert command.recipe_options == expected
    with pytest.raises(dataclasses.FrozenInstanceError):
        command.out = "elsewhere"


@pytest.mark.parametrize(
    "words", [["chefer,lrp"], ["chefer", "lrp"], ["chefer,", "lrp"]]
)
def test_lists_take_spaces_and_commas(words):
    command = parse("run", "faithfulness", *BASE, "--methods", *words)
    assert command.recipe_options.methods == ("chefer", "lrp")
    for flag in "--blocks", "--layers":  # the name in functions
        for words in [f"{flag}=-1,-2"], [flag, "-1", "-2"]:
            assert parse("neurons", "--model", "m", *words).layers == (-1, -2)
            assert parse("explain", "a", "--model", "m", *words).layers == (-1, -2)
    assert parse("report", "a,b", "c").runs == ("a,b", "c")  # paths


def test_a_recipe_of_ones_own_has_flags(capsys):
    command = parse("run", "mean", *BASE, "--power", "2", recipes=[MEAN])
    assert command.recipe is MEAN and command.recipe_options == MeanOptions(2.0)
    command = parse("estimate", "mean", *BASE[:4], recipes=[MEAN])
    assert command.recipe_options == MeanOptions()
    text = shown(capsys, "run", "mean", "--help", recipes=[MEAN])
    assert "mean options" in text and "of the mean." in text
    text = shown(capsys, "run", "--help", recipes=[MEAN])
    assert "Raise the mean of an image to a power." in text


def test_help_has_every_option_once_in_groups(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = shown(capsys, "run", "faithfulness", "--help")
    assert text.index(" run options ") < text.index(" faithfulness options ")
    names = [field.name for field in dataclasses.fields(RunOptions)]
    names += ["methods", "protocols", "steps", "target", "random-init", "distributed"]
    for name in names:
        assert len(re.findall(rf"--{name.replace('_', '-')} ", text)) == 1, name


def test_help_has_a_line_for_each_command_and_recipe(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for words, names in (("--help",), main.COMMANDS), (("run", "--help"), RECIPES):
        text = shown(capsys, *words)
        assert all(re.search(rf"• {name} +[A-Z]\w+", text) for name in names)


@pytest.mark.parametrize(
    ("words", "name"), [((), "look"), (("run",), "tokens"), (("look",), "--open")]
)
def test_help_is_also_a_command(words, name, capsys):
    text = shown(capsys, "help", *words)
    assert text == shown(capsys, *words, "--help") and name in text


def test_old_names_work(capsys):
    flags = ["--memory", "5MiB", "--train", "csv:a"]
    options = parse("run", "probes", *BASE, *flags).recipe_options
    assert (options.max_memory, options.train) == ("5MiB", "csv:a")
    assert "--max-memory" in capsys.readouterr().err
    options = parse("run", "probes", *BASE, "--memory=5MiB").recipe_options
    assert options.max_memory == "5MiB"
    assert parse("report", "rows", "--tests", "published").tests == "published"
    for flag in (("--coordinator", "host:1"), ("--coordinator=host:1",)):
        assert parse("run", "paper", *BASE, *flag, "--limit=3").options.limit == 3


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ([], "run"),
        (["run"], "identifiability"),
        (["reprot", "rows"], "'report'"),
        (["train"], "train_textured_digits.py"),
        (["run", "identifability", *BASE], "'identifiability'"),
        (["estimate", "precision", *BASE], "gone"),
        (["estimate", "paper", "--model", "m"], "--data"),
        (["estimate", "paper", *BASE[:4], "--topology=v5e:2x2"], "--topology is gone"),
        (["explain", "a.png", "--modle", "vit_ti16"], "--model"),
        (["run", "paper", *BASE, "--batchsize=3"], "--batch-size"),
        (["run", "paper", *BASE, "--train", "csv:a"], "--train"),
        (["run", "paper", *BASE, "--limit", "x"], "--limit"),
        (["run", "paper", *BASE, "--limit", "0"], "limit=0"),
        (["run", "faithfulness", *BASE, "--methods", "chefr"], "'chefer'"),
        (["run", "faithfulness", *BASE, "--steps", "1"], "steps=1"),
        (["list", "--jsno"], "--json"),
    ],
)
def test_wrong_usage_exits_with_2_and_a_hint(words, hint, capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(words)
    assert caught.value.code == 2
    assert hint in capsys.readouterr().err


@pytest.fixture
def cluster(monkeypatch):
    """What JAX is asked for, in order."""
    calls = []
    for name in "distributed.initialize", "distributed.shutdown", "devices":
        monkeypatch.setattr(f"jax.{name}", functools.partial(calls.append, name))
    return calls


def test_processes_are_numbered_by_flags_or_a_cluster(cluster, monkeypatch):
    def find(**fields):
        run = Run(recipe="paper", model="m", data="d", out="o", **fields)
        return run.find_process()

    assert find() is None
    with pytest.raises(ValueError, match="--distributed"):
        find(process=0, processes=2)
    assert find(distributed=True, process=1, processes=2) == (1, 2)
    with pytest.raises(ValueError, match="both"):
        find(distributed=True, process=0)
    assert not cluster
    assert find(distributed=True) == (0, 1)
    assert cluster == ["distributed.initialize", "distributed.shutdown"]

    def nothing():
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr("jax.distributed.initialize", nothing)
    with pytest.raises(ValueError, match="--processes"):
        find(distributed=True)


def test_jax_is_started_by_the_cluster_first(cluster):
    assert main.main(["run", "paper", *BASE, "--distributed"]) == 1  # no such model
    assert [cluster[0], cluster[2]] == ["distributed.initialize", "devices"]


def test_imports_leave_signals_and_heavy_libraries_alone():
    program = (
        "import signal, sys, vitjax; from vitjax.cli import main;"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler;"
        "main.parse(['run', 'paper', '--model', 'm', '--data', 'd', '--out', 'o']);"
        "print(sorted({'zarr', 'xarray', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_the_version_is_printed(capsys):
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{vitjax.__version__}\n"


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["list"], 0),
        (["run", "--help"], 0),
        (["run", "paper", *BASE], 1),
        (["demo"], 1),
        (["run", "paper", *BASE, "--distributed"], 1),
        (["run", "paper", *BASE, "--distributed", "--process=0", "--processes=1"], 1),
    ],
)
def test_a_platform_without_devices_is_refused_where_one_is_needed(
    words, status, cluster, monkeypatch, capsys
):
    def devices():
        raise AssertionError

    monkeypatch.setattr("jax.devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "rocm")
    try:
        assert main.main(words) == status
    except SystemExit as end:
        assert end.code == status
    assert ("JAX_PLATFORMS=rocm" in capsys.readouterr().err) == bool(status)


@pytest.mark.slow
def test_stdout_that_is_closed_early_is_silent():
    program = f"{shlex.quote(sys.executable)} -m vitjax list"
    command = program + " | true; exit ${PIPESTATUS[0]}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
