"""What a model without inputs of its own may be called with: guesses from its layers and the names of its arguments."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Any

from pytest_modelbudget.backends.outline import Outline
from pytest_modelbudget.cli.discover.proposals.names import function_tree

_SIDES = (224, 32, 256, 28, 64, 128, 512, 96, 299, 384, 16)
"""Sides of images, the usual ones first; a net without adaptive pooling fits one of them."""

_LENGTHS = (128, 1024, 16, 64, 512, 32, 16_000)
_USUAL_CHANNELS = (3, 1)
_MOST_TRIALS = 120
_MOST_EACH = 10

_KINDS: tuple[tuple[str, str], ...] = (
    (r"(\w*_)?(mask|masks)(_\w+)?", "mask"),
    (r"t|ts|(\w*_)?(time|timestep|timesteps|steps?|sigma|noise_level)", "scalars"),
    (r"(\w*_)?(labels?|class_labels|classes)", "classes"),
    (r"(\w*_)?(lengths?|lens?)", "classes"),
    (r"(\w*_)?(ids?|idx|tokens?|input_ids|text|texts|captions?|words|tgt|trg)", "tokens"),
    (r"(\w*_)?(videos?|clips?)", "videos"),
    (r"(\w*_)?(imgs?|images?|pixel_values|pixels|pic|frame|rgb)(\d|_\w+)?", "images"),
    (r"(\w*_)?(mels?|mel_spec|spectrogram|spec|audio|wav|waveform|speech)", "series"),
    (r"(\w*_)?(context|cond|memory|enc_out|encoder_hidden_states|xa|embeds?|features?)", "features"),
)
_KIND_PATTERNS = tuple((re.compile(pattern), kind) for pattern, kind in _KINDS)

_SIDE_NAMES = re.compile(r"(\w+_)?(image|img|input|im|crop)?_?(size|resolution|res|height|width)", re.IGNORECASE)
_LENGTH_NAMES = re.compile(r"\w*(seq|ctx|context|block|len|length|positions|frames|time)\w*", re.IGNORECASE)
_FRAME_NAMES = re.compile(r"(\w+_)?(num_|n_)?frames?", re.IGNORECASE)
_CHANNEL_NAMES = re.compile(r"(in_|input_|image_|img_|n_|num_)?(channels?|chans)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Guess:
    """Inputs as a manifest has them, and the sizes of the dimensions they name."""

    inputs: Any
    dims: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a model's layers and the arguments of its builder say of its inputs."""

    layers: Sequence[Any]
    hints: Mapping[str, Any]
    positions: tuple[int, ...] = ()
    matrices: tuple[int, ...] = ()
    channels_last: bool = False

    def first(self, kind: str, attribute: str) -> Any:
        """An attribute of the first layer of a type; None when there is none."""
        return next((getattr(layer, attribute, None) for layer in self.layers if type(layer).__name__ == kind), None)

    def hinted(self, names: re.Pattern[str]) -> list[int]:
        """Sizes of arguments with such names."""
        values = (size for name, value in self.hints.items() if names.fullmatch(name) for size in _ints(value))
        return list(dict.fromkeys(size for size in values if 0 < size < 100_000))


def guesses(model: Any, hints: Mapping[str, Any], outline: Outline | None = None) -> tuple[tuple[Guess, ...], str]:
    """What to try, the likeliest first; when there is nothing to try, why.

    `hints` are the arguments of its builder by name: an `image_size` is the side of its images. `outline` is what is
    known of a model that does not show its layers itself.
    """
    if outline is None:
        function = _called_function(model)
        positions, matrices = tuple(_positions(model)), tuple(_matrices(model))
        facts = _Facts(list(_leaves(model)), hints, positions, matrices, not hasattr(model, "forward"))
    else:
        function = outline.function
        facts = _Facts(outline.layers, hints, channels_last=outline.channels_last)
    tries, why = _tries(function, facts)
    return (tries if outline is None or outline.batched else tuple(map(_of_one_example, tries))), why


def _of_one_example(guess: Guess) -> Guess:
    """The same without a batch."""

    def alone(written: Any) -> Any:
        if isinstance(written, str):
            return written.replace("[B, ", "[").replace("[B]", "[]")
        if isinstance(written, dict):
            return {name: alone(item) for name, item in written.items()}
        return [alone(item) for item in written]

    return Guess(alone(guess.inputs), guess.dims)


def _tries(function: Any, facts: _Facts) -> tuple[tuple[Guess, ...], str]:
    names = _needed_inputs(function)
    if not (facts.layers or facts.positions or facts.matrices):
        return (), "its inputs cannot be guessed from its layers: register it with inputs"
    families = [_candidates(name, facts, function) for name in names]
    if not families or not all(families):
        return (), "its inputs cannot be guessed from its layers: register it with inputs"
    if len(families) == 1 and not isinstance(families[0][0].inputs, dict):
        return tuple(families[0]), ""
    if len(families) == 1:
        return tuple(Guess([guess.inputs], guess.dims) for guess in families[0]), ""
    return tuple(_combined(names, [family[:_MOST_EACH] for family in families])), ""


def _called_function(model: Any) -> Any:
    kind = type(model)
    return next((getattr(kind, name) for name in ("forward", "call", "__call__") if hasattr(kind, name)), None)


def _needed_inputs(function: Any) -> list[str]:
    """The names of the inputs that a model cannot do without; that of its first where it has defaults for all."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[1:]
    except (TypeError, ValueError):
        return ["x"]
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    needed = [p.name for p in named if p.default is p.empty]
    return needed or [p.name for p in named[:1]] or ["x"]


def _combined(names: Sequence[str], families: Sequence[Sequence[Guess]]) -> Iterator[Guess]:
    """A value for each input by name, likely ones together first."""
    indices = sorted(product(*(range(len(family)) for family in families)), key=lambda index: (sum(index), index))
    for index in indices[:_MOST_TRIALS]:
        chosen = [family[position] for family, position in zip(families, index, strict=True)]
        dims = {name: size for guess in chosen for name, size in guess.dims.items()}
        if all(dims[name] == size for guess in chosen for name, size in guess.dims.items()):
            yield Guess({name: guess.inputs for name, guess in zip(names, chosen, strict=True)}, dims)


def _candidates(name: str, facts: _Facts, function: Any) -> list[Guess]:
    """What an input of that name may be."""
    if keys := _keys_read(function, name):
        return list(islice(_combined(keys, [_candidates(key, facts, None)[:_MOST_EACH] for key in keys]), _MOST_TRIALS))
    for pattern, kind in _KIND_PATTERNS:
        if pattern.fullmatch(name.lower()):
            return _unique([*_FAMILIES[kind](facts), *_by_layers(facts)])
    return _unique(_by_layers(facts))


def _unique(candidates: Sequence[Guess]) -> list[Guess]:
    return [guess for index, guess in enumerate(candidates) if guess not in candidates[:index]]


def _keys_read(function: Any, name: str) -> list[str]:
    """The keys that a model's code reads of one of its inputs: `batch["image"]`."""
    keys = []
    for node in ast.walk(function_tree(function)) if function is not None else ():
        match node:
            case ast.Subscript(value=ast.Name(id=owner), slice=ast.Constant(value=str(key)), ctx=ast.Load()):
                keys += [key] if owner == name else []
    return list(dict.fromkeys(keys))


def _by_layers(facts: _Facts) -> list[Guess]:
    """From the first layer that says something; behind it what models may be called with that rearrange first."""
    kinds = [kind for kind in (_LAYER_KINDS.get(type(layer).__name__) for layer in facts.layers) if kind]
    likely = ["images"] if facts.hinted(_SIDE_NAMES) else ["features"] if facts.matrices else []
    likely = ["videos", *likely] if facts.hinted(_FRAME_NAMES) else likely
    if "images" in kinds and any(size in _USUAL_CHANNELS for size in _channels(facts, "Conv2d")[:1]):
        likely = [*likely, "images"]
        kinds = ["images", *kinds]
    order = dict.fromkeys((*kinds[:1], *likely, *kinds[1:2], "images", "features", "series"))
    if kinds[:1] == ["features"] and likely:
        order = dict.fromkeys((*likely, *order))
    return [guess for kind in order for guess in _FAMILIES[kind](facts)]


def _images(facts: _Facts) -> Iterator[Guess]:
    channels = _channels(facts, "Conv2d") or [facts.first("BatchNorm2d", "num_features") or 3]
    for side in (*facts.hinted(_SIDE_NAMES), *_SIDES):
        for count in channels[:2]:
            yield Guess(_tensor("float32", _placed(count, [side, side], facts)))


def _videos(facts: _Facts) -> Iterator[Guess]:
    channels = (_channels(facts, "Conv3d") or [3])[0]
    sides = (*facts.hinted(_SIDE_NAMES), 112, 64, 224, 32)
    for frames in (*facts.hinted(_FRAME_NAMES), 16, 8, 32, 64):
        for side in sides[:3]:
            yield Guess(_tensor("float32", _placed(channels, [frames, side, side], facts)))


def _channels(facts: _Facts, kind: str) -> list[int]:
    """Those of images that some layer takes, then those of the first layer, which may not be where they come in."""
    taken = [getattr(layer, "in_channels", None) for layer in facts.layers if type(layer).__name__ == kind]
    usual = [size for size in _USUAL_CHANNELS if size in taken]
    return list(dict.fromkeys(size for size in (*usual, *taken[:1], *facts.hinted(_CHANNEL_NAMES)) if size))


def _placed(channels: int, sizes: list[int], facts: _Facts) -> list[int]:
    return [*sizes, channels] if facts.channels_last else [channels, *sizes]


def _series(facts: _Facts) -> Iterator[Guess]:
    channels = facts.first("Conv1d", "in_channels") or (facts.hinted(_CHANNEL_NAMES) or [1])[0]
    for length in _lengths(facts):
        yield Guess(_tensor("float32", _placed(channels, [length], facts)))
    for length in _lengths(facts)[:3]:
        yield Guess(_tensor("float32", [length]))


def _lengths(facts: _Facts) -> list[int]:
    """Lengths of sequences: what the model has positions for, and twice that, for one that halves them first."""
    known = [*facts.hinted(_LENGTH_NAMES), *facts.positions]
    return list(dict.fromkeys((*known, *(2 * length for length in known), *_LENGTHS)))


def _tokens(facts: _Facts) -> Iterator[Guess]:
    if facts.layers and not any(type(layer).__name__ in ("Embedding", "EmbeddingBag") for layer in facts.layers):
        yield from _features(facts)  # somebody else embeds them
        return
    for length in (128, 16):
        yield Guess("int64[B, T]", {"T": length})
    for length in _lengths(facts)[:4]:
        yield Guess(_tensor("int64", [length]))
    yield Guess("int64[B]")


def _features(facts: _Facts) -> Iterator[Guess]:
    linear = [getattr(layer, "in_features", 0) for layer in facts.layers if type(layer).__name__ == "Linear"]
    shapes = [getattr(layer, "normalized_shape", ()) for layer in facts.layers if type(layer).__name__ == "LayerNorm"]
    norms = [shape[-1] for shape in map(tuple, shapes[:1]) if len(shape) == 1]
    widths = [width for width in dict.fromkeys((*linear[:1], *norms, *linear[1:])) if width]
    for width in widths[:4] or list(facts.matrices[:2]) or [16, 64, 784]:
        yield Guess(f"float32[B, {width}]")
        yield Guess(f"float32[B, T, {width}]", {"T": 128})
        for length in _lengths(facts)[:3] if facts.positions else ():
            yield Guess(f"float32[B, {length}, {width}]")


def _steps(facts: _Facts) -> Iterator[Guess]:
    layer = next(layer for layer in facts.layers if type(layer).__name__ in ("LSTM", "GRU", "RNN"))
    width = getattr(layer, "input_size", 16)
    order = "B, T" if getattr(layer, "batch_first", True) else "T, B"
    yield Guess(f"float32[{order}, {width}]", {"T": 128})


def _norms(facts: _Facts) -> Iterator[Guess]:
    yield Guess(f"float32[B, {facts.first('BatchNorm1d', 'num_features') or 16}]")


def _masks(facts: _Facts) -> Iterator[Guess]:
    yield Guess("bool[B, T]", {"T": 128})
    yield Guess("bool[T, T]", {"T": 128})
    yield Guess("float32[B, T]", {"T": 128})


def _scalars(facts: _Facts) -> Iterator[Guess]:
    yield Guess("float32[B]")
    yield Guess("int64[B]")
    yield Guess("float32[B, 1]")


def _classes(facts: _Facts) -> Iterator[Guess]:
    yield Guess("int64[B]")
    yield Guess("int64[B, T]", {"T": 128})


def _tensor(dtype: str, sizes: Sequence[int]) -> str:
    return f"{dtype}[{', '.join(['B', *map(str, sizes)])}]"


_Family = Callable[[_Facts], Iterator[Guess]]

_FAMILIES: dict[str, _Family] = {
    "images": _images,
    "videos": _videos,
    "series": _series,
    "tokens": _tokens,
    "features": _features,
    "steps": _steps,
    "norms": _norms,
    "mask": _masks,
    "scalars": _scalars,
    "classes": _classes,
}

_LAYER_KINDS = {
    "Conv1d": "series",
    "Conv2d": "images",
    "Conv3d": "videos",
    "BatchNorm1d": "norms",
    "BatchNorm2d": "images",
    "Linear": "features",
    "LayerNorm": "features",
    "Embedding": "tokens",
    "EmbeddingBag": "tokens",
    "LSTM": "steps",
    "GRU": "steps",
    "RNN": "steps",
    "Conv1D": "series",
    "Conv2D": "images",
    "Conv3D": "videos",
    "Dense": "features",
}
"""By the type of a layer, torch's and Keras'."""


def _leaves(model: Any) -> Iterator[Any]:
    """The layers of a model that have none inside, in the order they were made."""
    modules = getattr(model, "modules", None)
    if callable(modules):
        yield from (module for module in modules() if not any(True for _ in module.children()))
        return
    layers = getattr(model, "_flatten_layers", None)
    if callable(layers):
        yield from (layer for layer in layers(include_self=False, recursive=True))


def _positions(model: Any) -> Iterator[int]:
    """How many positions a model has weights or tables for, told from their names; the width of a plain matrix."""
    for listing in ("named_parameters", "named_buffers"):
        for name, tensor in getattr(model, listing, tuple)():
            if "pos" in name.lower():
                yield from (int(size) for size in tuple(tensor.shape)[:-1] if size > 4)


def _matrices(model: Any) -> Iterator[int]:
    """What the matrices of a model without layers take: the rows of its variables."""
    if not hasattr(model, "modules") and not hasattr(model, "_flatten_layers"):
        shapes = (tuple(variable.shape) for variable in getattr(model, "variables", ()))
        yield from (int(shape[0]) for shape in shapes if len(shape) == 2)


def _ints(value: Any) -> Iterator[int]:
    """The whole numbers in an argument, also in a tuple or a configuration as a manifest writes it."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _ints(item)
    elif isinstance(value, dict) and value.get("call") == "builtins:tuple":
        yield from _ints(value.get("args", []))
