"""Models read from `.keras` and `.h5` files: their config is built, their weights stay on the disk."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras import layers as L

from pytest_modelbudget import ModelBudgetError, Summary, summarize
from pytest_modelbudget.backends import keras as backend
from pytest_modelbudget.backends.keras import files
from pytest_modelbudget.cli import main

SMALL_PARAMS = (8 + 1) * 4 + 4 * 4 + (4 + 1) * 2
SMALL_FLOPS = 2 * (8 * 4 + 4 * 2)


def small() -> keras.Model:
    return keras.Sequential([keras.Input((8,)), L.Dense(4), L.BatchNormalization(), L.Dropout(0.1), L.Dense(2)])


def two_inputs() -> keras.Model:
    left, right = keras.Input((8,), name="left"), keras.Input((8,), name="right")
    shared = L.Dense(4, name="shared")
    return keras.Model([left, right], L.Add(name="sum")([shared(left), shared(right)]))


def nested() -> keras.Model:
    inner = keras.Sequential([keras.Input((8,)), L.Dense(8)], name="inner")
    inner.compile("sgd", "mse")
    return keras.Sequential([keras.Input((5, 8)), L.TimeDistributed(inner), L.LSTM(3), L.Dense(1)])


def half_precision() -> keras.Model:
    return keras.Sequential([keras.Input((8,)), L.Dense(4, dtype="bfloat16")])


@keras.saving.register_keras_serializable(package="tests")
class Scale(L.Layer):
    """One number for each channel."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")

    def call(self, x: Any) -> Any:
        return x * self.scale


@keras.saving.register_keras_serializable(package="tests")
class Tower(keras.Model):
    """A subclassed model, whose config says nothing of its layers."""

    def __init__(self, units: int = 6, **options: Any) -> None:
        super().__init__(**options)
        self.units, self.hidden, self.out = units, L.Dense(units), L.Dense(1)

    def call(self, x: Any) -> Any:
        return self.out(self.hidden(x))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


def with_own_layer() -> keras.Model:
    return keras.Sequential([keras.Input((8,)), Scale(name="scaled"), L.Dense(2)])


def tower() -> keras.Model:
    model = Tower()
    model(np.zeros((1, 8), "float32"))
    return model


def trained(model: keras.Model) -> keras.Model:
    """With the slots of an optimizer, twice as many variables as the model has."""
    model.compile(optimizer="adam", loss="mse")
    model.optimizer.build(model.trainable_variables)
    return model


def rows(summary: Summary) -> list[Any]:
    return [
        (one.path, one.type, one.output_text, one.weights_text, one.connected_to, one.calls, one.flops)
        for one in summary.layers
    ]


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Save a model as a file of the test's folder."""

    def save(model: keras.Model, name: str = "net.keras") -> Path:
        path = tmp_path / name
        model.save(path)
        return path

    return save


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("build", [small, two_inputs, nested, half_precision, with_own_layer])
def test_a_file_counts_as_the_model_it_was_saved_from(
    saved: Callable[..., Path], build: Callable[[], keras.Model], suffix: str
) -> None:
    """Rows, params and FLOPs are those of the live model."""
    model = trained(build())
    live, read = summarize(model), summarize(saved(model, f"net{suffix}"))
    assert rows(read) == rows(live)
    assert (read.params, read.trainable_params, read.flops) == (live.params, live.trainable_params, live.flops)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_what_an_optimizer_stored_is_no_param(saved: Callable[..., Path], suffix: str) -> None:
    """A compiled model's file has three times its variables; its params are counted by hand."""
    summary = summarize(saved(trained(small()), f"net{suffix}"))
    assert (summary.params, summary.flops.value) == (SMALL_PARAMS, SMALL_FLOPS)
    assert summary.non_trainable_params == 2 * 4
    slots = 2 * 4 * (SMALL_PARAMS - 2 * 4)
    assert summary.optimizer_bytes is not None
    assert slots < summary.optimizer_bytes <= slots + 8 + 4  # its step and learning rate


def test_a_reference_and_a_missing_file_in_the_library(saved: Callable[..., Path], monkeypatch: Any) -> None:
    """`summarize` takes what a manifest's `build` does; a path is relative to the current folder."""
    path = saved(small())
    monkeypatch.chdir(path.parent)
    assert summarize("net.keras").params == summarize(f"{__name__}:small").params == SMALL_PARAMS
    assert summarize("net.keras").model == "net"
    with pytest.raises(ModelBudgetError, match=r"there is no file other\.keras"):
        summarize("other.keras")


def test_a_lambda_in_the_training_is_left_out(saved: Callable[..., Path]) -> None:
    """A loss that is Python code is no part of the model, and so no reason to refuse it."""
    model = small()
    model.compile("adam", lambda expected, found: keras.ops.mean(expected - found))
    assert summarize(saved(model)).params == SMALL_PARAMS


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_mobilenet(saved: Callable[..., Path], suffix: str) -> None:
    """The published count of MobileNetV2 is read from both formats."""
    path = saved(keras.applications.MobileNetV2(weights=None), f"net{suffix}")
    assert summarize(path).params == 3_538_984


def test_a_subclassed_model_is_built_by_what_the_file_remembers(saved: Callable[..., Path]) -> None:
    """Its class is the project's own; the shape it was built with is in the file, that of a call is declared."""
    path = saved(tower())
    declared, bare = summarize(path, "float32[B, 8]"), summarize(path)
    assert declared.params == bare.params == (8 + 1) * 6 + (6 + 1) * 1
    assert (declared.flops.value, bare.flops.value) == (2 * (8 * 6 + 6 * 1), None)


@pytest.mark.parametrize("name", ["net.h5", "net.zip", "without-suffix", "folder"])
def test_the_command_takes_what_a_manifest_takes(
    saved: Callable[..., Path], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever a file is called, and a `.keras` file that was unzipped."""
    path = tmp_path / name
    if name == "folder":
        with zipfile.ZipFile(saved(small())) as file:
            file.extractall(path)
    else:
        saved(small(), "saved.h5" if name in ("net.h5", "without-suffix") else "saved.keras").rename(path)
    assert main(["show", str(path)]) == 0
    assert f"Total params: {SMALL_PARAMS} " in capsys.readouterr().out


def test_no_weight_is_loaded(saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one dataset of either format is read, and no variable has a value."""
    paths = [saved(trained(small()), f"net{suffix}") for suffix in (".keras", ".h5")]

    def refuse(*_: Any) -> Any:
        raise AssertionError("a dataset was read")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", refuse)
    monkeypatch.setattr(h5py.Dataset, "__array__", refuse)
    for path in paths:
        with backend.global_state_restored(), backend.abstract():
            model = files.read(path)
        assert all(variable._value is None for variable in model.variables)


# --- what is refused


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("unsafe", [False, True], ids=["safe mode", "safe mode turned off"])
def test_python_code_in_a_file_is_never_run(saved: Callable[..., Path], suffix: str, unsafe: bool) -> None:
    """A Lambda is refused by file, layer and cure, also where the process allows unsafe files."""
    model = keras.Sequential([keras.Input((8,)), L.Lambda(lambda x: x * 2, name="twice")])
    path = saved(model, f"net{suffix}")
    if unsafe:
        keras.config.enable_unsafe_deserialization()
    try:
        with pytest.raises(ModelBudgetError, match=rf"net\{suffix}: layer 'twice' is a Lambda .* registered Layer"):
            summarize(path)
    finally:
        keras.src.saving.serialization_lib.global_state.set_global_attribute("safe_mode_saving", None)


def test_a_lambda_inside_other_layers_is_found(saved: Callable[..., Path]) -> None:
    """However deep it is."""
    layer = L.TimeDistributed(L.Lambda(lambda x: x * 2, name="twice"))
    path = saved(keras.Sequential([keras.Input((3, 8)), keras.Sequential([keras.Input((3, 8)), layer])]))
    with pytest.raises(ModelBudgetError, match="layer 'twice' is a Lambda"):
        summarize(path)


def test_a_lambda_of_a_registered_function_is_the_projects_own_code(saved: Callable[..., Path]) -> None:
    """The file holds its name alone."""

    @keras.saving.register_keras_serializable(package="tests")
    def halved(x: Any) -> Any:
        return x / 2

    path = saved(keras.Sequential([keras.Input((8,)), L.Lambda(halved, output_shape=(8,)), L.Dense(2)]))
    assert summarize(path).params == 9 * 2


@pytest.fixture
def unknown_class(saved: Callable[..., Path]) -> Iterator[Callable[[str], Path]]:
    """Save a model with a layer whose class is not registered when it is read."""

    def save(suffix: str) -> Path:
        class Stranger(Scale):
            pass

        return saved(keras.Sequential([keras.Input((8,)), Stranger(name="odd"), L.Dense(2)]), f"net{suffix}")

    yield save
    keras.saving.get_custom_objects().pop("Stranger", None)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_class_that_is_not_registered(unknown_class: Callable[[str], Path], suffix: str) -> None:
    """The message names class, layer and both cures; the cure it names works."""
    path = unknown_class(suffix)
    with pytest.raises(ModelBudgetError) as error:
        summarize(path)
    message = str(error.value)
    assert f"net{suffix}: 'Stranger' of layer 'odd'" in message
    assert "is not one of Keras' own and is not registered" in message
    assert "@keras.saving.register_keras_serializable()" in message
    assert "get_custom_objects()['Stranger'] = Stranger" in message
    keras.saving.get_custom_objects()["Stranger"] = Scale
    assert summarize(path).params == 8 + 9 * 2


def _rezipped(path: Path, **changed: bytes | None) -> Path:
    """The same archive with other contents for some of its parts."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            replaced = changed.get(name.replace(".", "_"), content)
            if replaced is not None:
                archive.writestr(name, replaced)
    return path


DAMAGE: list[Any] = [
    pytest.param(lambda path: path.unlink(), "there is no file .*net.keras", id="missing"),
    pytest.param(lambda path: path.write_bytes(b""), "is empty", id="empty"),
    pytest.param(lambda path: path.write_bytes(path.read_bytes()[:5000]), "damaged or truncated", id="truncated"),
    pytest.param(lambda path: path.write_text("hello"), "no model that can be read", id="a text"),
    pytest.param(
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "run git lfs pull",
        id="a pointer of Git LFS",
    ),
    pytest.param(lambda path: _rezipped(path, config_json=None), "no config.json", id="another zip file"),
    pytest.param(lambda path: _rezipped(path, config_json=b'{"class_name": '), "damaged", id="half a config"),
    pytest.param(lambda path: _rezipped(path, config_json=b"[1, 2]"), "describes no model", id="a list as config"),
    pytest.param(
        lambda path: _rezipped(path, config_json=b'{"module": "keras", "class_name": "Sequential", "config": {"layers": 3}}'),
        "cannot rebuild its config, written by Keras 3",
        id="a config of nothing",
    ),
    pytest.param(lambda path: _rezipped(path, model_weights_h5=b"zeros"), "damaged", id="weights that are none"),
    pytest.param(lambda path: (path.unlink(), path.mkdir()), "a folder without saved_model.pb", id="an empty folder"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage(saved: Callable[..., Path], damage: Callable[[Path], Any], message: str) -> None:
    """Each says what is wrong with which file."""
    path = saved(small())
    damage(path)
    with pytest.raises(ModelBudgetError, match=message) as error:
        summarize(str(path))
    assert "net.keras" in str(error.value)


def test_a_damaged_h5_file(saved: Callable[..., Path]) -> None:
    """The end of the file is missing."""
    path = saved(small(), "net.h5")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ModelBudgetError, match=r"net\.h5 is damaged or truncated"):
        summarize(path)


def test_weights_alone_are_no_model(tmp_path: Path) -> None:
    """A `.weights.h5` file does not say what it is of."""
    small().save_weights(tmp_path / "net.weights.h5")
    with pytest.raises(ModelBudgetError, match="holds weights only"):
        summarize(tmp_path / "net.weights.h5")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_weights_of_another_shape_than_the_config_says(saved: Callable[..., Path], suffix: str) -> None:
    """A layer's class that changed since the file was saved would not load, and is not what the file holds."""
    path = saved(with_own_layer(), f"net{suffix}")

    @keras.saving.register_keras_serializable(package="tests", name="Scale")
    class Wider(L.Layer):
        def build(self, shape: Any) -> None:
            self.scale = self.add_weight(shape=(shape[-1], 3), name="scale")

        def call(self, x: Any) -> Any:
            return x * self.scale[:, 0]

    try:
        with pytest.raises(ModelBudgetError, match=r"scale' the shape \[8, 3\], and the weights stored"):
            summarize(path)
    finally:
        keras.saving.get_custom_objects()["tests>Scale"] = Scale


# --- size, and the rest of the process


def huge(path: Path) -> Path:
    """A file of 6.7 B params that takes no space on the disk: its datasets are declared and never written."""
    with backend.global_state_restored(), backend.abstract():
        model = keras.Sequential([keras.Input((8192,)), *(L.Dense(8192) for _ in range(100))])
        config = model.to_json()
        shapes = [tuple(weight.shape) for weight in model.weights]
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        for position, shape in enumerate(shapes):
            file.create_dataset(f"layers/{position}/vars/0", shape, "float32", chunks=(1,) * len(shape[:-1]) + (8192,))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", config)
        archive.writestr("metadata.json", json.dumps({"keras_version": keras.__version__}))
        archive.writestr("model.weights.h5", weights.getvalue())
    return path


SCRIPT = """
    import resource, sys
    from pytest_modelbudget import summarize

    summarize(sys.argv[1])  # imports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    summary = summarize(sys.argv[2])
    print(summary.params, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    print("tensorflow" in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="reads the peak memory of a process")
def test_a_huge_file_takes_little_memory(saved: Callable[..., Path], tmp_path: Path) -> None:
    """6,711,705,600 params (25 GiB) within 200 MiB, and TensorFlow stays out where Keras runs on another backend."""
    command = [sys.executable, "-c", dedent(SCRIPT), str(saved(small())), str(huge(tmp_path / "huge.keras"))]
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    (params, mebibytes), (loaded,) = map(str.split, done.stdout.splitlines())
    assert int(params) == 100 * 8192 * (8192 + 1) == 6_711_705_600
    assert int(mebibytes) < 200
    assert loaded == "False"


def test_in_a_manifest(pytester: pytest.Pytester, saved: Callable[..., Path]) -> None:
    """A path is relative to the manifest, not to the root or the current folder; a mistake is said with its line."""
    folder = pytester.mkdir("nets")
    saved(small()).rename(folder / "net.keras")
    (folder / "modelbudget.yaml").write_text(
        "models:\n  net: net.keras\n  gone: {build: ./gone.keras}\n  odd: {build: net.keras, kwargs: {a: 1}}\n"
        "  unclear: {build: saved}\n",
        encoding="utf-8",
    )
    result = pytester.runpytest_inprocess("--model-budget-update", "nets/modelbudget.yaml")
    result.assert_outcomes(passed=1, failed=3)
    result.stdout.fnmatch_lines_random(
        [
            "*there is no file nets/gone.keras*",
            "*nets/modelbudget.yaml:4: args and kwargs are for functions*",
            "*nets/modelbudget.yaml:5: build: 'saved' is not a reference*net.onnx*SavedModel*",
        ]
    )
    assert "params: 62" in (folder / "__model_budget__" / "net.yaml").read_text(encoding="utf-8")


def test_in_a_fixture(pytester: pytest.Pytester, saved: Callable[..., Path]) -> None:
    """A path in a test is relative to the test's file."""
    folder = pytester.mkdir("checks")
    saved(small()).rename(folder / "net.keras")
    (folder / "test_net.py").write_text(
        "def test_net(model_budget):\n    assert model_budget.check('net.keras', params=62).params == 62\n",
        encoding="utf-8",
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


def test_keras_keeps_these_names() -> None:
    """What is used of Keras and is not public is still there."""
    from keras.src.legacy.saving import saving_options, saving_utils
    from keras.src.saving.serialization_lib import SafeModeScope

    assert callable(saving_options.keras_option_scope)
    assert callable(saving_utils.model_from_config)
    assert callable(SafeModeScope)
    assert callable(L.Layer.save_own_variables)


def test_stored_weights_of_quantised_layers_are_their_own(saved: Callable[..., Path]) -> None:
    """A quantised layer stores other shapes than its float weights have: nothing to complain of."""
    model = keras.Sequential([keras.Input((8,)), L.Dense(4)])
    model.quantize("int8")
    assert summarize(saved(model)).params == summarize(model).params
