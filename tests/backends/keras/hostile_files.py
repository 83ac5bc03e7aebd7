"""Model files of somebody who means harm, or that are damaged: each entry writes one file into a folder."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Config = dict[str, Any]
MARK = "mark"
"""The file, in the folder, that a program in a model file makes."""


def made(kind: Any, config: Any, module: Any = "keras.layers", /, **more: Any) -> Config:
    """A config as `.keras` files have it."""
    return {"module": module, "class_name": kind, "config": config, "registered_name": None, **more}


def function(module: str, name: Any, registered_name: str | None = None) -> Config:
    return made("function", name, module, registered_name=registered_name or name)


def tensor(layer: str, call: int = 0) -> Config:
    return {
        "class_name": "__keras_tensor__",
        "config": {"shape": [None, 4], "dtype": "float32", "keras_history": [layer, call, 0]},
    }


def call(*args: Any, **kwargs: Any) -> Config:
    return {"args": list(args), "kwargs": kwargs}


def source(width: int = 4) -> Config:
    return made(
        "InputLayer", {"batch_shape": [None, width], "dtype": "float32", "name": "i"}, name="i", inbound_nodes=[]
    )


def functional(*layers: Config, output: str = "i") -> Config:
    config = {
        "name": "m",
        "trainable": True,
        "layers": [source(), *layers],
        "input_layers": [["i", 0, 0]],
        "output_layers": [[output, 0, 0]],
    }
    return made("Functional", config, "keras.src.models.functional", registered_name="Functional")


def node(config: Config, *calls: Config, name: str = "n") -> Config:
    return functional(config | {"name": name, "inbound_nodes": list(calls or (call(tensor("i")),))}, output=name)


def layer(kind: str = "Dense", /, **config: Any) -> Config:
    base = {"name": "d", **({"units": 2} if kind == "Dense" else {})}
    return sequential(made(kind, base | config))


def sequential(*layers: Config) -> Config:
    return made("Sequential", {"name": "s", "layers": [source(), *layers], "build_input_shape": [None, 4]}, "keras")


def legacy(kind: str = "Dense", /, **config: Any) -> Config:
    first = {
        "class_name": kind,
        "config": {"name": "d", "batch_input_shape": [None, 4], **({"units": 2} if kind == "Dense" else {}), **config},
    }
    return {"class_name": "Sequential", "config": {"name": "s", "layers": [first]}}


def legacy_node(name: str, config: Config, nodes: Any) -> Config:
    start = {
        "class_name": "InputLayer",
        "name": "i",
        "config": {"name": "i", "batch_input_shape": [None, 4], "dtype": "float32"},
        "inbound_nodes": [],
    }
    called = {"class_name": name, "name": "n", "config": {"name": "n", **config}, "inbound_nodes": nodes}
    inner = {"name": "m", "layers": [start, called], "input_layers": [["i", 0, 0]], "output_layers": [["n", 0, 0]]}
    return {"class_name": "Functional", "config": inner}


def keras_file(config: Any, name: str = "m.keras") -> Callable[[Path], Path]:
    """Writes a `.keras` file of a config, or of bytes that stand in its place; MARK in it becomes the mark's path."""

    def write(folder: Path) -> Path:
        content = config if isinstance(config, bytes) else json.dumps(config).replace(MARK, str(folder / MARK)).encode()
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("config.json", content)
            archive.writestr("metadata.json", '{"keras_version": "3.6.0"}')
        return folder / name

    return write


def h5_file(config: Any, fill: Callable[[Any, Path], Any] | None = None) -> Callable[[Path], Path]:
    """Writes a `.h5` file of a config, with what `fill` puts into it."""

    def write(folder: Path) -> Path:
        with h5py.File(folder / "m.h5", "w", libver="latest") as file:
            if config is not None:
                text = config if isinstance(config, str) else json.dumps(config).replace(MARK, str(folder / MARK))
                file.attrs["model_config"] = text
            if fill is not None:
                fill(file, folder)
        return folder / "m.h5"

    return write


def zipped(*parts: tuple[str, bytes], kind: int = zipfile.ZIP_DEFLATED, flags: int = 0) -> Callable[[Path], Path]:
    """Writes an archive of parts, a name more than once where it is there more than once."""

    def write(folder: Path) -> Path:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", kind) as archive:
            for name, content in parts:
                archive.writestr(name, content)
        raw = buffer.getvalue()
        if flags:
            raw = raw.replace(b"PK\x03\x04\x14\x00\x00\x00", b"PK\x03\x04\x14\x00" + struct.pack("<H", flags))
            raw = raw.replace(
                b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00" + struct.pack("<H", flags)
            )
        (folder / "m.keras").write_bytes(raw)
        return folder / "m.keras"

    return write


GOOD = sequential(made("Dense", {"name": "d", "units": 2}))
GOOD_TEXT = json.dumps(GOOD).encode()
TOUCH = ["touch", MARK]
OPEN = call(MARK, "w")

NAMES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a function in the graph": (keras_file(node(function("subprocess", "call"), call(TOUCH))), "subprocess"),
    "a function of os": (keras_file(node(function("os", "mkdir"), call(MARK))), "os.mkdir"),
    "a builtin": (keras_file(node(function("builtins", "open"), OPEN)), "builtins.open"),
    "a builtin as activation": (keras_file(layer(activation=function("builtins", "eval"))), "'eval' of layer 'd', which the file takes from 'builtins',"),
    "a function by its registered name": (keras_file(node(function("subprocess", "nothing", "call"), call(TOUCH))), "subprocess"),
    "a helper of Keras": (keras_file(node(function("keras.utils", "get_file"), call(MARK, f"file://{__file__}"))), "keras.utils.get_file"),
    "an inner helper of Keras": (keras_file(node(function("keras.src.utils.file_utils", "makedirs"), call(MARK))), "file_utils.makedirs"),
    "an archive to unpack": (keras_file(node(function("keras.src.utils.file_utils", "extract_archive"), call("a.tar", MARK))), "extract_archive"),
    "a setting of Keras": (keras_file(node(function("keras.config", "enable_unsafe_deserialization"), call())), "enable_unsafe"),
    "a model to load": (keras_file(node(function("keras.saving", "load_model"), call("other.keras"))), "load_model"),
    "a deserializer": (keras_file(node(function("keras.activations", "deserialize"), call({"a": 1}))), "the function keras.activations.deserialize"),
    "a reader of JSON": (keras_file(node(function("keras.models", "model_from_json"), call("{}"))), "model_from_json"),
    "an operation as a function": (keras_file(node(function("keras.ops", "ones"), call([9, 9]))), "the function keras.ops.ones"),
    "a class of another package": (keras_file(sequential(made("Popen", {"args": TOUCH}, "subprocess"))), "subprocess"),
    "a module in the working folder": (keras_file(sequential(made("Evil", {}, "evil_module"))), "evil_module"),
    "a class in an initializer": (keras_file(layer(kernel_initializer=made("Popen", {"args": TOUCH}, "subprocess"))), "subprocess"),
    "a class in a regularizer": (keras_file(layer(kernel_regularizer=made("Popen", {"args": TOUCH}, "subprocess"))), "subprocess"),
    "a class in a constraint": (keras_file(layer(bias_constraint=made("Popen", {"args": TOUCH}, "subprocess"))), "subprocess"),
    "a class in a wrapped layer": (keras_file(layer("TimeDistributed", layer=made("Popen", {"args": TOUCH}, "subprocess"))), "subprocess"),
    "a class as dtype": (keras_file(layer(dtype=made("Popen", {"args": TOUCH}, "subprocess"))), "subprocess"),
    "a class in the arguments of a call": (keras_file(node(made("Dense", {"units": 2, "name": "n"}), call(tensor("i"), training=made("Popen", {"args": TOUCH}, "subprocess")))), "subprocess"),
    "a class in the shapes it was built with": (keras_file(sequential(made("Dense", {"units": 2}, build_config={"input_shape": made("Popen", {"args": TOUCH}, "subprocess")}))), "subprocess"),
    "a class with the id of another": (keras_file(sequential(made("Popen", {"args": TOUCH}, "subprocess", shared_object_id=1))), "subprocess"),
    "a class in a list of lists": (keras_file(layer(name="d", units=[[made("Popen", {"args": TOUCH}, "subprocess")]])), "subprocess"),
    "the model itself": (keras_file(made("Popen", {"args": TOUCH}, "subprocess")), "subprocess"),
    "a type of a tensor": (keras_file(layer(units={"class_name": "__typespec__", "spec_name": "Popen", "module": "subprocess", "registered_name": None, "config": TOUCH})), "__typespec__"),
    "a callback": (keras_file(sequential(made("LambdaCallback", {}, "keras.callbacks"))), "LambdaCallback"),
    "an initializer in the graph": (keras_file(node(made("Ones", {}, "keras.initializers"), call([1 << 40]))), "no layer"),
    "an operation on nothing": (keras_file(node(made("Tile", {"repeats": 1 << 40}, "keras.src.ops.numpy"), call({"class_name": "__numpy__", "config": {"value": [1], "dtype": "int32"}}))), "called on nothing"),
    "a name that is no text": (keras_file(sequential(made(["Dense"], {}))), "is damaged"),
    "a module that is no text": (keras_file(sequential(made("Dense", {}, ["keras"]))), "is damaged"),
    "a function without a name": (keras_file(layer(activation=function("keras.activations", {"a": 1}, "relu"))), "is damaged"),
    "a lambda": (keras_file(layer("Lambda", function={"class_name": "__lambda__", "config": {"code": "4wAA", "defaults": None, "closure": None}})), "Python code is stored"),
    "a shape of a Lambda": (keras_file(layer("Lambda", function="relu", output_shape={"class_name": "__lambda__", "config": {"code": "4wAA"}})), "Python code is stored"),
    "a pickled torch module": (keras_file(layer("TorchModuleWrapper", module={"class_name": "__bytes__", "config": {"value": "gASV"}})), "pickle"),
    "a SavedModel elsewhere": (keras_file(layer("TFSMLayer", filepath="/tmp/other")), "reads another file"),
    "a list of unknown words": (keras_file(layer("StringLookup", vocabulary=["a"], num_oov_indices=10**9)), "layer 'd' has num_oov_indices 1000000000, of which Keras makes a list"),
    "a list of lengths": (keras_file(layer("TextVectorization", vocabulary=["a"], ngrams=10**9)), "layer 'd' has ngrams 1000000000, of which"),
    "a layer that Keras refuses": (keras_file(layer(units=-5)), "cannot rebuild its config, written by Keras 3.6.0: "),
    "words in a file": (keras_file(layer("StringLookup", vocabulary="/etc/passwd")), "vocabulary from another file, '/etc/passwd'"),
    "numbers in a file": (keras_file(layer("IntegerLookup", vocabulary="/etc/passwd")), "vocabulary from another file"),
    "texts in a file": (keras_file(layer("TextVectorization", vocabulary="/dev/zero")), "vocabulary from another file"),
    "words of a server": (keras_file(layer("StringLookup", vocabulary="gs://bucket/words")), "vocabulary from another file"),
    "a dtype of a gigabyte": (keras_file(layer(kernel_initializer=made("Constant", {"value": {"class_name": "__numpy__", "config": {"value": ["a"], "dtype": "U1000000000"}}}, "keras.initializers"))), "dtype 'U1000000000'"),
    "a lambda in h5": (h5_file(legacy("Lambda", function=["4wAA", None, None], function_type="lambda")), "Python code is stored"),
    "a shape of a Lambda in h5": (h5_file(legacy("Lambda", function="relu", function_type="function", output_shape=["4wAA", None, None], output_shape_type="lambda")), "Python code is stored"),
    "a deserializer in h5": (h5_file(legacy("deserialize", config=made("Popen", {"args": TOUCH}, "subprocess"))), "deserialize of layer 'd' is no part of its models"),
    "builtins in h5": (h5_file(legacy("__builtins__")), "is no part of its models"),
    "a module in h5": (h5_file(legacy_node("function", {}, [[["i", 0, 0, {}]]]) | {"module": "subprocess"}), "subprocess"),
    "a layer with a module in h5": (h5_file({"class_name": "Sequential", "config": {"name": "s", "layers": [made("Popen", {"args": TOUCH}, "subprocess")]}}), "subprocess"),
    "words in a file, in h5": (h5_file(legacy("StringLookup", vocabulary="/etc/passwd")), "vocabulary from another file"),
}  # fmt: skip
"""Each names something that a file must not name; what its error says."""


def _ring(count: int) -> Config:
    """Layers of which each waits for the next."""
    names = [f"n{position}" for position in range(count)]
    layers = [
        made("ReLU", {"name": name}, name=name, inbound_nodes=[call(tensor(names[(position + 1) % count]))])
        for position, name in enumerate(names)
    ]
    return functional(*layers, output=names[0])


def _backwards(count: int) -> Config:
    """Layers in the order against that of their calls."""
    layers = [
        made(
            "ReLU",
            {"name": f"n{position}"},
            name=f"n{position}",
            inbound_nodes=[call(tensor(f"n{position - 1}" if position else "i"))],
        )
        for position in reversed(range(count))
    ]
    return functional(*layers, output=f"n{count - 1}")


def _nested(levels: int) -> Config:
    config = made("Dense", {"units": 2})
    for level in range(levels):
        config = made("TimeDistributed", {"name": f"t{level}", "layer": config})
    return sequential(config)


def _external_link(file: Any, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    file["model_weights"] = h5py.ExternalLink(str(folder / "pipe"), "/")


def _link_inside(file: Any, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    file.create_group("model_weights")["d"] = h5py.ExternalLink(str(folder / "pipe"), "/")


def _soft_link(file: Any, folder: Path) -> None:
    file["model_weights"] = h5py.SoftLink("/model_weights")


def _loop(file: Any, folder: Path) -> None:
    group = file.create_group("model_weights/d")
    group["again"] = file["model_weights"]
    group.create_dataset("kernel", (4, 2), "float32")
    group.create_dataset("bias", (2,), "float32")


def _external_data(file: Any, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_external(str(folder / "pipe").encode(), 0, 32)
    group = file.create_group("model_weights")
    h5py.h5d.create(group.id, b"kernel", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((4, 2)), plist)


def _virtual(file: Any, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    layout = h5py.VirtualLayout(shape=(4,), maxshape=(None,), dtype="f4")
    part = h5py.VirtualSource(str(folder / "pipe"), "d", shape=(4,), maxshape=(None,))
    layout[0 : h5py.h5s.UNLIMITED : 1] = part[0 : h5py.h5s.UNLIMITED : 1]
    file.create_group("model_weights").create_virtual_dataset("v", layout)


def _deep(file: Any, folder: Path) -> None:
    group = file.create_group("model_weights").id
    for _ in range(3000):
        group = h5py.h5g.create(group, b"a")


def _weights(fill: Callable[[Any], Any]) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver="latest") as file:
        fill(file)
    return buffer.getvalue()


def _huge_text(folder: Path) -> Path:
    """A text of a gigabyte by what it declares."""
    path = h5_file(None, lambda file, _: file.attrs.create("model_config", np.zeros((), "S60000")))(folder)
    raw = path.read_bytes()
    place = raw.index(struct.pack("<BBBBI", 0x13, 1, 0, 0, 60000))
    path.write_bytes(raw[:place] + struct.pack("<BBBBI", 0x13, 1, 0, 0, 1 << 30) + raw[place + 8 :])
    return path


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "m.keras")
    return folder / "m.keras"


def _device(folder: Path) -> Path:
    (folder / "m.h5").symlink_to("/dev/zero")
    return folder / "m.h5"


def _folder(**parts: str | None) -> Callable[[Path], Path]:
    """A folder of parts; None is a pipe."""

    def write(folder: Path) -> Path:
        (folder / "m").mkdir()
        for name, content in parts.items():
            path = folder / "m" / name.replace("_json", ".json").replace("_h5", ".weights.h5").replace("_pb", ".pb")
            if content is None:
                os.mkfifo(path)
            else:
                path.write_text(content)
        return folder / "m"

    return write


def _texts(values: Iterable[Any]) -> Callable[[Any, Path], None]:
    return lambda file, _: file.attrs.create("model_config", list(values))


def _sparse_config(folder: Path) -> Path:
    (folder / "m.parts").mkdir()
    with (folder / "m.parts" / "config.json").open("wb") as file:
        file.truncate(10**10)
    return folder / "m.parts"


SIZES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a config of 64 MiB": (zipped(("config.json", b" " * (1 << 26))), "is not unpacked: config.json would take 67,108,864 bytes"),
    "metadata of 16 MiB": (zipped(("config.json", GOOD_TEXT), ("metadata.json", b" " * (1 << 24))), "metadata.json would take"),
    "weights of 128 MiB": (zipped(("config.json", GOOD_TEXT), ("model.weights.h5", bytes(1 << 27))), "model.weights.h5 would take"),
    "two configs": (zipped(("config.json", GOOD_TEXT), ("config.json", GOOD_TEXT)), "more than one config.json"),
    "an encrypted config": (zipped(("config.json", GOOD_TEXT), kind=zipfile.ZIP_STORED, flags=1), "is encrypted"),
    "another compression": (zipped(("config.json", GOOD_TEXT), kind=zipfile.ZIP_LZMA), "compressed in another way"),
    "lists within lists": (keras_file(b"[" * 200_000 + b"]" * 200_000), "levels"),
    "layers within layers": (keras_file(_nested(400)), "levels"),
    "a number without end": (keras_file(b'{"class_name": "Dense", "config": {"units": ' + b"9" * 5000 + b"}}"), "is damaged or truncated"),
    "layers that wait for each other": (keras_file(_ring(3)), "waits for itself"),
    "a layer that waits for itself, in h5": (h5_file(legacy_node("ReLU", {}, [[["n", 0, 0, {}]]])), "waits for itself"),
    "layers from last to first": (keras_file(_backwards(2500)), "not in the order of their calls"),
    "a link to another file": (h5_file(legacy(), _external_link), "'model_weights' in it is a link"),
    "a link inside of the weights": (h5_file(legacy(), _link_inside), "'d' in it is a link"),
    "a link to itself": (h5_file(legacy(), _soft_link), "'model_weights' in it is a link"),
    "weights in another file": (h5_file(legacy(), _external_data), "weights in it lie in other files"),
    "weights that are views of another file": (h5_file(legacy(), _virtual), "weights in it lie in other files"),
    "groups within groups": (h5_file(legacy(), _deep), "groups deep"),
    "many texts for one": (h5_file(None, _texts(["a"] * 100)), "its model_config is no text"),
    "a number for a text": (h5_file(None, lambda file, _: file.attrs.create("model_config", 3)), "its model_config is no text"),
    "a text of a gigabyte": (_huge_text, "is damaged"),
    "a config of h5 that is no JSON": (h5_file("{"), "is damaged or truncated"),
    "a pipe": (_pipe, "is a pipe or a device"),
    "a device": (_device, "is a pipe or a device"),
    "a pipe for a config": (_folder(config_json=None), "a folder without saved_model.pb"),
    "a config without end in a folder": (_sparse_config, "config.json in it has more than 67,108,864 bytes"),
    "a pipe for a graph": (_folder(saved_model_pb=None), "a folder without saved_model.pb"),
}  # fmt: skip
"""Each asks for more than it has, never ends, or leads elsewhere; what its error says."""
