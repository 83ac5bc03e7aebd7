"""The models of published times: language models with the sizes that their tables name, timm's, and denoisers.

Each has the number of parameters that is published for it, where one is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pytest_modelbudget.inputs import Inputs, parse

LLAMAS: dict[str, dict[str, Any]] = {
    "llama2-7b": {"num_key_value_heads": 32},
    "llama2-13b": {
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
        "num_key_value_heads": 40,
    },
    "llama2-70b": {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "tinyllama-1.1b": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "codellama-34b": {
        "hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 48, "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "llama3-8b": {"intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256},
    "llama3-70b": {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "llama3-405b": {
        "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
}  # fmt: skip
GPTS = {
    "mpt-760m": (1536, 24, 12), "mpt-1b": (2048, 24, 16), "mpt-3b": (2560, 32, 20), "mpt-7b": (4096, 32, 32),
    "mpt-13b": (5120, 40, 40), "mpt-30b": (7168, 48, 56), "mpt-70b": (8192, 80, 64),
    "megatron-1.7b": (2304, 24, 24), "megatron-3.6b": (3072, 30, 32), "megatron-7.5b": (4096, 36, 32),
    "megatron-18b": (6144, 40, 48), "megatron-39b": (8192, 48, 64), "megatron-76b": (10240, 60, 80),
    "megatron-146b": (12288, 80, 96), "megatron-310b": (16384, 96, 128), "megatron-530b": (20480, 105, 128),
    "megatron-1t": (25600, 128, 160), "gpt3-5b": (4096, 24, 32), "gpt3-20b": (6144, 44, 48),
    "gpt3-175b": (12288, 96, 96),
}  # fmt: skip
"""Width, blocks and heads."""
WORDS = {"mpt": 50_368, "megatron": 51_200, "gpt3": 51_200}
PARAMS = {
    ("mpt-7b", 2048): 6_658_859_008, ("megatron-1t", 2048): 1_008e9, ("megatron-146b", 2048): 145.6e9,
    ("tinyllama-1.1b", 2048): 1_100_048_384, ("llama3-405b", 8192): 405_853_388_800, ("sd-1.5", 512): 859_520_964,
    ("sdxl", 1024): 2_567_463_684, ("flux-dev", 1024): 11_901_408_320,
}  # fmt: skip
"""Published ones, of models with so many positions or pixels."""

SDXL: dict[str, Any] = {
    "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
    "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
DENOISERS = ("sd-1.5", "sdxl", "flux-dev")


class GptBlock(nn.Module):
    """Attention and a feed-forward of four times the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norm_1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(*parts.unbind(0), is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.norm_2(x))))


class Gpt(nn.Module):
    """MPT or a GPT of Megatron-LM, with learned positions and a head tied to the words."""

    def __init__(self, name: str, length: int) -> None:
        super().__init__()
        width, blocks, heads = GPTS[name]
        self.words, self.positions = nn.Embedding(WORDS[name.partition("-")[0]], width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(GptBlock(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.words(input_ids) + self.positions.weight[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.words.weight)


def llama(name: str) -> nn.Module:
    """A model of transformers."""
    import transformers

    model: nn.Module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMAS[name]))
    return model


def denoiser(name: str) -> nn.Module:
    """What runs once for each step of a diffusion pipeline."""
    import diffusers

    if name == "flux-dev":
        model: nn.Module = diffusers.FluxTransformer2DModel(guidance_embeds=True)
    elif name == "sdxl":
        model = diffusers.UNet2DConditionModel(**SDXL)
    else:
        model = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    return model


def model_of(name: str, size: int) -> nn.Module:
    """The model that a row names, of so many positions, with the published number of parameters."""
    if name in LLAMAS:
        model: nn.Module = llama(name)
    elif name in GPTS:
        model = Gpt(name, size)
    elif name in DENOISERS:
        model = denoiser(name)
    else:
        import timm

        model = timm.create_model(name)
    if published := PARAMS.get((name, size)):
        counted = sum(parameter.numel() for parameter in model.parameters())
        assert abs(counted / published - 1) < (0.001 if isinstance(published, float) else 1e-9), (name, counted)
    return model


def is_language_model(name: str) -> bool:
    """Whether it is called with tokens."""
    return name in LLAMAS or name in GPTS


def inputs_of(name: str, size: int, dtype: str) -> Inputs:
    """What a model is called with: tokens, images of so many pixels a side, or latents of them in `dtype`."""
    if is_language_model(name):
        inputs = parse("int64[B, T]")
    elif name == "flux-dev":  # patches of 2 x 2 latents, one for 8 x 8 pixels, and 512 tokens of a prompt
        patches = (size // 16) ** 2
        inputs = parse({"kwargs": {
            "hidden_states": f"{dtype}[B, {patches}, 64]", "encoder_hidden_states": f"{dtype}[B, 512, 4096]",
            "pooled_projections": f"{dtype}[B, 768]", "timestep": f"{dtype}[B]", "guidance": f"{dtype}[B]",
            "img_ids": f"{dtype}[{patches}, 3]", "txt_ids": f"{dtype}[512, 3]",
        }})  # fmt: skip
    elif name in DENOISERS:
        width = 2048 if name == "sdxl" else 768
        more = {"text_embeds": f"{dtype}[B, 1280]", "time_ids": f"{dtype}[B, 6]"} if name == "sdxl" else {}
        inputs = parse({"kwargs": {
            "sample": f"{dtype}[B, 4, {size // 8}, {size // 8}]", "timestep": "int64[B]",
            "encoder_hidden_states": f"{dtype}[B, 77, {width}]", **({"added_cond_kwargs": more} if more else {}),
        }})  # fmt: skip
    else:
        inputs = parse(f"float32[B, 3, {size}, {size}]")
    assert isinstance(inputs, Inputs)
    return inputs
