"""What it costs to plan each recipe for GPT-2 and a model of Llama-3-8B's shape: `python tests/benchmarks/plan_speed.py`.

Models are those of transformers, built and planned as users call it (`plan(builder, inputs, training=...)`). Each
recipe is planned in a process of its own, forked from one that has imported the libraries and planned tiny models:
the CPU seconds are those of the build and the plan, the least of a few runs. The exit status is 1 when one is over its
bar: 1 second for GPT-2, 4 for Llama and for a mixture of experts of as many layers, more for what `SLOWER` names. Rows
of advice are plans of a run that does not fit a device, with what would help and the cheapest way to fit. Words run
only the recipes that have each of them in their lines, `--rounds 3` looks three times, and `--profile` prints where the
time of one goes. Needs `pip install transformers diffusers`.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import os
import pstats
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch._functorch._aot_autograd.subclass_parametrization  # noqa: E402
import torch._inductor.compile_fx  # noqa: E402
import torch._inductor.compiler_bisector  # noqa: E402
import torch._inductor.fx_passes.joint_graph  # noqa: E402
import transformers  # noqa: E402

import pytest_modelbudget.backends.torch.planning  # noqa: E402, F401
from pytest_modelbudget import plan  # noqa: E402
from pytest_modelbudget.planner.recipe import OPTAX_OPTIMIZERS, OPTIMIZERS  # noqa: E402
from pytest_modelbudget.summary import Plan  # noqa: E402
from tests.backends.torch.real_experts import Mixture  # noqa: E402

LORA = {"rank": 16, "targets": "all-linear"}
NF4 = {"nf4": {"double_quant": True}}
NOT_OF_TORCH = {"ftrl", "lamb", *OPTAX_OPTIMIZERS}
BY_NAME = tuple(name for name in OPTIMIZERS if name not in NOT_OF_TORCH and name != "adamw")


def preference_step(models: Any, ids: Any, optimizers: Any) -> None:
    """DPO: the first half of a batch was chosen, the second rejected."""
    optimizers["policy"].zero_grad()
    with torch.no_grad():
        reference = likelihoods(models["reference"], ids)
    chosen, rejected = (likelihoods(models["policy"], ids) - reference).chunk(2)
    (-torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()).backward()
    optimizers["policy"].step()


def likelihoods(model: Any, ids: Any) -> Any:
    """The log of the probability of each row."""
    scores = model(ids).logits[:, :-1].log_softmax(-1)
    return scores.gather(2, ids[:, 1:, None]).sum((1, 2))


def image_of(models: Any, ids: Any) -> Any:
    """Stable Diffusion: 20 steps with guidance, of prompts behind as many empty ones."""
    words = models["text"](ids)[0]
    latents = torch.randn(ids.shape[0] // 2, 4, 64, 64, device=ids.device, dtype=words.dtype)
    for step in range(20):
        freely, guided = models["unet"](torch.cat([latents, latents]), step, words).sample.chunk(2)
        latents = latents - 0.1 * (freely + 7.5 * (guided - freely))
    return models["decoder"].decode(latents).sample


TRAININGS: tuple[dict[str, Any], ...] = (
    {},
    {"precision": "bf16"},
    {"precision": "bf16-mixed"},
    {"precision": "fp16-mixed"},
    {"kernels": "cpu"},
    {"gradient_accumulation": 4},
    *({"loop": name} for name in ("hf-trainer", "lightning", "torchtitan", "nanogpt")),
    {"loop": "hf-trainer", "precision": "bf16-mixed"},
    *({"outputs": name} for name in ("until-step", "dropped")),
    *({"zero_grad": name} for name in ("before-backward", "after", "never")),
    *(
        {"checkpointing": value}
        for value in ("blocks", {"every": 2}, {"save": ["matmul", "attention"]}, {"save": "torchtitan"})
    ),
    {"foreach": False},
    {"fused": True},
    *({"optimizer": name} for name in BY_NAME),
    {"optimizer": "sgd", "optimizer_options": {"momentum": 0.9}},
    {"in_backward": True},
    {"offload": ["optimizer"]},
    {"offload": ["optimizer", "gradients"]},
    {"offload": ["activations"]},
    {"ema": True},
    *({"loss": name} for name in ("cross_entropy", "liger", "cce", "linear_cross_entropy", "chunked")),
    {"trainable": ["*attn*"]},
    {"lora": LORA},
    {"lora": {**LORA, "dropout": 0.05, "dora": True}},
    {"lora": {**LORA, "base": "int8"}, "precision": "bf16"},
    {"lora": {**LORA, "base": NF4}, "precision": "bf16"},
    {"lora": {**LORA, "base": NF4, "dropout": 0.05}, "precision": "bf16-mixed", "checkpointing": "blocks"},
    {"lora": {**LORA, "base": NF4, "dropout": 0.05, "dora": True}, "loop": "hf-trainer", "precision": "bf16-mixed",
     "optimizer": "paged-adamw-8bit", "checkpointing": "blocks"},
    {"lora": {**LORA, "base": NF4}, "precision": "bf16", "checkpointing": "blocks", "gradient_accumulation": 16},
    *({"sharding": {name: 8}} for name in ("ddp", "zero1", "fsdp", "zero2", "fsdp1", "tp")),
    {"steps": preference_step, "precision": "bf16"},
    {"sharding": {"ddp": 2, "fsdp": 4, "tp": 2}},
    {"sharding": {"fsdp": 8}, "offload": ["params"]},
    {"sharding": {"ddp": 8}, "gradient_accumulation": 4, "no_sync": True},
    *({"sharding": {"fsdp": 8, "casts": name}, "precision": "bf16-mixed"} for name in ("autocast", "policy", "both")),
    *({"sharding": {"fsdp": 1, "cp": 8, "rotate": name}, "precision": "bf16"} for name in ("allgather", "alltoall")),
    {"sharding": {"fsdp": 8, "cp": 2}, "precision": "bf16", "checkpointing": "blocks"},
    {"sharding": {"fsdp": 8, "cp": 8}, "precision": "bf16"},
    *({"pipeline": {"ranks": 4, "schedule": name, "microbatches": 4}, "loss": "cross_entropy"} for name in ("gpipe", "1f1b")),
    *({"pipeline": {"ranks": 2, "schedule": name, "microbatches": 4}, "loss": "cross_entropy"}
      for name in ("interleaved1f1b", "interleavedzerobubble", "zbvzerobubble")),
    {"pipeline": {"ranks": 2, "microbatches": 4}, "sharding": {"fsdp": 8, "casts": "policy"}, "precision": "bf16-mixed",
     "loss": "cross_entropy", "checkpointing": "blocks"},
    {"pipeline": {"ranks": 2, "microbatches": 4}, "sharding": {"fsdp": 8, "tp": 2}, "loss": "cross_entropy"},
    {"pipeline": {"ranks": 2, "microbatches": 4}, "loss": "liger"},
    {"batch": 32, "pipeline": {"ranks": 8, "schedule": "1f1b", "microbatches": 32}, "loss": "cross_entropy"},
    *({"fp8": name, "precision": "bf16-mixed"} for name in ("tensorwise", "rowwise", "rowwise_with_gw_hp")),
    {"fp8": {"recipe": "tensorwise", "all_gather": True}, "precision": "bf16-mixed", "sharding": {"fsdp": 8}},
    *({"compile": "inductor", "precision": name} for name in ("fp32", "bf16")),
    {"compile": {"inductor": "blocks"}, "precision": "bf16"},
    {"compile": {"inductor": "blocks"}, "precision": "bf16-mixed", "sharding": {"fsdp": 8, "casts": "policy"},
     "checkpointing": "blocks"},
)  # fmt: skip
ADVISED: tuple[dict[str, Any], ...] = (
    {"batch": 4, "precision": "bf16-mixed"},
    {"batch": 8, "precision": "bf16"},
)
"""Trainings that do not fit the devices of `ADVISED_ON`."""

ADVISED_ON = {"GPT-2": "2 GB", "Llama-8B": "80 GB"}
EXPERT_TRAININGS: tuple[dict[str, Any], ...] = (
    *({"sharding": {"fsdp": 8, "ep": 4, "routing": name}} for name in ("balanced", "one-rank")),
    {"sharding": {"ddp": 2, "fsdp": 4, "ep": 2}, "checkpointing": "blocks"},
    {
        "pipeline": {"ranks": 2, "schedule": "1f1b", "microbatches": 4},
        "sharding": {"fsdp": 8, "ep": 4},
        "loss": "cross_entropy",
    },
    {
        "pipeline": {"ranks": 2, "schedule": "interleaved1f1b", "microbatches": 4},
        "sharding": {"fsdp": 8, "ep": 4},
        "loss": "cross_entropy",
        "checkpointing": "blocks",
    },
)
INFERENCES: tuple[dict[str, Any], ...] = (
    {},
    {"precision": "bf16"},
    {"precision": "bf16-mixed"},
    {"kv_cache": 512},
    {"offload": ["params"]},
    {"offload": {"params": ["*.1?"]}, "precision": "bf16"},
    {"compile": "inductor"},
)
DIFFUSIONS: tuple[dict[str, Any], ...] = ({"steps": image_of, "precision": "fp16"},)
SERVINGS: tuple[dict[str, Any], ...] = (
    {"requests": 64},
    {"engine": "contiguous", "requests": 8},
    {"requests": 64, "precision": "fp8"},
    {"requests": 64, "tp": 2},
)


def gpt2() -> Any:
    """124,439,808 parameters."""
    return transformers.GPT2LMHeadModel(transformers.GPT2Config())


def llama(**shape: Any) -> Any:
    """8,030,261,248 parameters with the shape of Llama 3 8B."""
    shape = shape or {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    config = transformers.LlamaConfig(
        **shape, num_attention_heads=32, num_key_value_heads=8, vocab_size=128_256, tie_word_embeddings=False
    )
    return transformers.LlamaForCausalLM(config)


def mixture() -> Any:
    """32 layers of 8 experts each, narrow ones: their widths cost a plan nothing."""
    return Mixture(layers=32)


def pair(build: Callable[[], Any]) -> Any:
    """A model that is trained, and one that it is held against."""
    return {"policy": build(), "reference": build().requires_grad_(False)}


def diffusion() -> Any:
    """Stable Diffusion 1.5: its encoder of text, what takes away noise, and what makes images of latents."""
    import diffusers

    text = transformers.CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    return {
        "text": transformers.CLIPTextModel(text),
        "unet": diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        "decoder": diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ),
    }  # fmt: skip


def tiny_mixture() -> Any:
    """What is planned before the clock starts."""
    return Mixture(layers=2)


def tiny_gpt2(layers: int = 2) -> Any:
    """What is planned before the clock starts."""
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=layers, n_head=2))


def tiny_llama() -> Any:
    """What is planned before the clock starts."""
    return llama(hidden_size=64, intermediate_size=64, num_hidden_layers=2)


MODELS: dict[str, tuple[Callable[[], Any], Callable[[], Any], float]] = {
    "GPT-2": (gpt2, tiny_gpt2, 1.0),
    "Llama-8B": (llama, tiny_llama, 4.0),
    "Mixture": (mixture, tiny_mixture, 4.0),
    "Diffusion": (diffusion, tiny_gpt2, 4.0),
}
SLOWER: tuple[tuple[str, dict[str, Any], float], ...] = (
    ("GPT-2", {"compile": {"inductor": "blocks"}}, 2),  # graphs of two blocks: the first has an input without gradient
    ("GPT-2", {"compile": "inductor"}, 2),  # torch's own graphs of two and three blocks take most of it
)
"""For a model, or all, what has so many times the bar, and why."""

ADVICE = 8
"""How many times the bar of a plan advice may take: it is up to ten of levers, and 16 of ways to fit."""

INPUTS = "int64[B, T]"
BATCH, TOKENS, PROMPT = 4, 1024, 77
LANGUAGE_RECIPES = (
    *(("training", recipe) for recipe in TRAININGS),
    *(("inference", recipe) for recipe in INFERENCES),
    *(("serving", recipe) for recipe in SERVINGS),
    *(("advice", recipe) for recipe in ADVISED),
)
OTHER_RECIPES = {
    "Mixture": tuple(("training", recipe) for recipe in EXPERT_TRAININGS),
    "Diffusion": tuple(("inference", recipe) for recipe in DIFFUSIONS),
}

NOT_OF_GPT2 = (
    *({"optimizer": name} for name in ("galore", "apollo", "apollo-mini")), {"tp": 8}, {"tp": 2}, {"ranks": 8},
)  # fmt: skip
"""What GPT-2 of transformers, whose layers are not Linear and whose blocks are 12, is refused, beside `fp8`."""


def line_of(model: str, kind: str, recipe: dict[str, Any]) -> str:
    """A recipe as it is shown, and found by words."""
    words = (f"{key}: {getattr(value, '__name__', value)}" for key, value in recipe.items())
    return f"{model:10}{kind}: {', '.join(words) or 'as it is by itself'}"


def plan_once(model: str, kind: str, recipe: dict[str, Any]) -> Plan:
    """What a user calls."""
    if kind == "advice":
        device = ADVISED_ON[model]
        return plan(MODELS[model][0], INPUTS, training=recipe, dims={"T": TOKENS}, name="model", devices=device)
    batch = {} if kind == "serving" or "batch" in recipe else {"batch": BATCH}
    build = MODELS[model][0]
    if isinstance(recipe.get("compile"), dict):
        build = partial(without_cache, build)
    elif "steps" in recipe and model != "Diffusion":
        build = partial(pair, build)
    tokens = PROMPT if model == "Diffusion" else TOKENS
    return plan(build, INPUTS, **{kind: recipe}, **batch, dims={"T": tokens}, name="model")  # type: ignore[arg-type]


def without_cache(build: Callable[[], Any]) -> Any:
    """A model that keeps no cache, which is refused of blocks that are compiled by themselves."""
    model = build()
    model.config.use_cache = False
    return model


def bar_of(model: str, kind: str, recipe: dict[str, Any]) -> float:
    """The most CPU seconds of a plan."""
    if kind == "advice":
        return MODELS[model][2] * ADVICE
    factors = (factor for name, options, factor in SLOWER if name in ("", model) and _within(options, recipe))
    return MODELS[model][2] * next(factors, 1.0)


def seconds(model: str, kind: str, recipe: dict[str, Any]) -> float | str:
    """CPU seconds of a plan in a forked process, or its error."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        begin = time.process_time()
        try:
            planned = plan_once(model, kind, recipe)
            answer = f"{time.process_time() - begin}" if planned.peak_bytes else f"not planned: {planned.notes[-1]}"
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, answer.encode()[:4096])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    try:
        return float(answer)
    except ValueError:
        return answer or "the process died"


def warm_up() -> None:
    """Lazy imports of torch and transformers are no part of a plan's time, nor are Inductor's tables.

    No compiled model is trained here: a process that has started threads of autograd on it is not to be forked.
    """
    for build in (tiny_gpt2, tiny_llama, tiny_mixture):
        for options in ({"training": {"precision": "bf16-mixed"}}, {"training": {"sharding": {"fsdp": 2}}}):
            plan(build, INPUTS, **options, batch=1, dims={"T": 16}, name="tiny")  # type: ignore[arg-type]
    with suppress(ModuleNotFoundError), torch.device("meta"):  # its row says what is not installed
        diffusion()
    deep_enough = partial(tiny_gpt2, 8)
    plan(deep_enough, INPUTS, inference={"compile": "inductor"}, batch=1, dims={"T": 16}, name="tiny")
    torch._inductor.fx_passes.joint_graph.lazy_init(torch.device("cpu"))  # as it is called in a plan
    gc.collect()
    gc.freeze()


def chosen(words: list[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The cases whose lines have all words."""
    for model in MODELS:
        for kind, recipe in OTHER_RECIPES.get(model, LANGUAGE_RECIPES):
            refused = "fp8" in recipe or any(_within(options, recipe) for options in NOT_OF_GPT2)
            if not (model == "GPT-2" and refused) and all(word in line_of(model, kind, recipe) for word in words):
                yield model, kind, recipe


def _within(options: dict[str, Any], recipe: dict[str, Any]) -> bool:
    """Whether a recipe, its sharding or its pipeline has these."""
    places = (recipe, recipe.get("sharding", {}), recipe.get("pipeline", {}))
    return any(all(place.get(key) == value for key, value in options.items()) for place in places)


def profile(case: tuple[str, str, dict[str, Any]]) -> None:
    """Where the time of one case goes."""
    with cProfile.Profile() as profiler:
        plan_once(*case)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(45)
    pstats.Stats(profiler).sort_stats("cumulative").print_stats(70)


def main() -> int:
    """Print the seconds of each case; 1 when one is over its bar or has an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    warm_up()
    cases = list(chosen(given.words))
    if given.profile:
        profile(cases[0])
        return 0
    over = 0
    for case in cases:
        runs = [seconds(*case) for _ in range(given.rounds)]
        errors = [run for run in runs if isinstance(run, str)]
        least = min((run for run in runs if isinstance(run, float)), default=0.0)
        missed = bool(errors) or least > bar_of(*case)
        over += missed
        text = errors[0].splitlines()[0] if errors else f"{least:6.2f}"
        print(f"{text} {'OVER' if missed else '    '} {line_of(*case)}", flush=True)
    print(f"{len(cases)} plans, {over} over their bar")
    return 1 if over or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
