"""Hand-made summaries whose numbers can be counted on paper."""

from __future__ import annotations

from pytest_modelbudget.summary import (
    CacheGroup,
    Fit,
    Flops,
    Input,
    LargestSize,
    Layer,
    Lever,
    Part,
    Plan,
    Point,
    ServingCache,
    Summary,
    TensorSpec,
    Weight,
)


def spec(*shape: int | str | None, dtype: str = "float32") -> TensorSpec:
    """A tensor of that shape."""
    return TensorSpec(shape, dtype)


def dense(path: str, inputs: int, outputs: int, source: str, **options: object) -> Layer:
    """A fully connected layer with inputs * outputs + outputs params."""
    weights = (Weight("kernel", (inputs, outputs)), Weight("bias", (outputs,)))
    fields = {
        "outputs": ((spec("B", outputs),),),
        "connected_to": ((source,),),
        "weights": weights,
        "flops": 2 * inputs * outputs,
    }
    return Layer(path, "Dense", **(fields | options))  # type: ignore[arg-type]


def towers() -> Summary:
    """Two inputs of 100 and 20 values, a Dense(50) on each, joined, and a Dense(1): 5,050 + 1,050 + 101 = 6,201."""
    layers = (
        Layer("user", "InputLayer", ((spec("B", 100),),)),
        Layer("item", "InputLayer", ((spec("B", 20),),)),
        dense("dense", 100, 50, "user"),
        dense("dense_1", 20, 50, "item"),
        Layer("concatenate", "Concatenate", ((spec("B", 100),),), (("dense", "dense_1"),), flops=0),
        dense("dense_2", 100, 1, "concatenate"),
    )
    return Summary(
        model="two-towers",
        framework="keras",
        layers=layers,
        inputs=(Input("user", spec("B", 100)), Input("item", spec("B", 20))),
        outputs=(spec("B", 1),),
        flops=Flops(2 * (100 * 50 + 20 * 50 + 100 * 1)),
        sizes=(("B", 1),),
    )


def gpt(depth: int = 4, experts: int = 1, width: int = 8, vocabulary: int = 100) -> Summary:
    """A stack of equal blocks between an embedding and a head that is tied to it."""
    hidden = ((spec("B", "T", width),),)
    layers = [Layer("tokens", "Embedding", hidden, (("ids",),), (Weight("weight", (vocabulary, width)),))]
    before = "tokens"
    for index in range(depth):
        block = f"h.{index}"
        layers.append(Layer(block, "Block", hidden, container=True))
        layers.append(Layer(f"{block}.norm", "LayerNorm", hidden, ((before,),), (Weight("weight", (width,)),)))
        for expert in range(experts):
            path = f"{block}.experts.{expert}.up"
            weights = (Weight("weight", (width, width)), Weight("mask", (width,), "bool", False, "buffer"))
            layers.append(Layer(path, "Linear", hidden, ((f"{block}.norm",),), weights))
        before = f"{block}.experts.{experts - 1}.up"
    tied = (Weight("weight", (vocabulary, width), tied_to="tokens.weight"),)
    layers.append(Layer("head", "Linear", ((spec("B", "T", vocabulary),),), ((before,),), tied))
    ids = Input("ids", spec("B", "T", dtype="int64"))
    return Summary("gpt", "torch", tuple(layers), (ids,), (spec("B", "T", vocabulary),), Flops(1234))


def training(peak: int = 40 * 2**20) -> Plan:
    """A training step that holds 12 MiB of weights and their states, and has its peak in the backward pass."""
    mib = 2**20
    curve = [
        ("forward", "dense", 13),
        ("forward", "dense_2", 30),
        ("backward", "dense_2", 40),
        ("backward", "dense", 20),
    ]
    return Plan(
        kind="training",
        recipe="batch 32, adamw, bf16-mixed",
        peak_bytes=peak,
        reserved_bytes=44 * mib,
        phase="backward",
        path="dense_2",
        op="aten.mm",
        parts=(
            Part("activation", "dense_2", 20 * mib),
            Part("optimizer", "", 8 * mib),
            Part("activation", "dense", 6 * mib),
            Part("param", "", 4 * mib),
            Part("gradient", "", 2 * mib),
        ),
        timeline=tuple(Point(phase, path, size * mib) for phase, path, size in [*curve, ("optimizer", "", 16)]),  # type: ignore[arg-type]
        levers=(Lever("checkpointing: blocks", 22 * mib, "about a third more compute"), Lever("batch: 64", 80 * mib)),
        fits=(Fit("80 MiB", 80 * mib, 45 * mib), Fit("40 MiB", 40 * mib, 45 * mib), Fit("abacus", 1, None)),
        largest=(LargestSize("B", 57, "80 MiB"), LargestSize("T", 0, "40 MiB")),
        notes=("the context of the device is not part of it",),
    )


def serving(cache_bytes: int = 8 * 2**30) -> Plan:
    """An engine that serves 64 requests of 1,024 tokens, with a window and a state in its cache."""
    groups = (
        CacheGroup(64, 131_072, 100 * 2**20),
        CacheGroup(2, 4_096, 20 * 2**20, window=4_095),
        CacheGroup(2, 0, 8 * 2**20),
        CacheGroup(1, 0, 0, shared_bytes=8),
    )
    return Plan(
        kind="serving",
        recipe="bf16, 64 requests, 1024 tokens each",
        peak_bytes=cache_bytes + 2**30,
        phase="forward",
        parts=(Part("cache", "", cache_bytes), Part("param", "", 2**30)),
        cache=ServingCache(cache_bytes, 135_168, 2**20, groups),
    )


HOSTILE = (
    "<img src=x onerror=alert(1)>", "::error::owned", "%0A::error::owned", "a|b", "`code`", "\x1b[2J", "\u202etxt.exe",
    "line\nbreak", "x" * 10_000, "a + b = c", "{[*&#!]}", "'\"\\", "- item: yes", "true", "", " ", "ünïcode", "a: b # c",
)  # fmt: skip
"""Names a model may hold by accident or malice."""
