"""Kinds of models and of steps for `memory_truth.py`: small ones, each with the recipe that says what its loop does.

A kind says the model, its inputs, and the step: the optimizer (as the recipe names it, and torch's own), autocast, the
loss, how often gradients are accumulated. Needs `pip install torchvision transformers timm`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Build = Callable[[], nn.Module]


def _one_by_one(name: str, **options: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda params: getattr(torch.optim, name)(params, **options, foreach=False)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": _one_by_one("SGD", lr=0.1),
    "adam": _one_by_one("Adam"),
    "adamw": _one_by_one("AdamW"),
    "rmsprop": _one_by_one("RMSprop"),
    "adagrad": _one_by_one("Adagrad"),
    "adafactor": _one_by_one("Adafactor"),
}
"""torch's own under the names of recipes, one tensor at a time."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A model, what it is called with, and how it is trained; `recipe` is that in the words of recipes.

    An `optimizer` of `infer` says that it is not trained. `without_rule` names what the CPU's kernels take by no known rule, so that the error is shown but not judged.
    """

    build: Build
    inputs: Any
    recipe: Mapping[str, Any] = field(default_factory=dict)
    optimizer: str = "adamw"
    without_rule: str = ""


def transformers_model(name: str, config: str, **sizes: Any) -> Build:
    """A model of transformers at a small size."""

    def build() -> nn.Module:
        import transformers

        model: nn.Module = getattr(transformers, name)(getattr(transformers, config)(**sizes))
        return model

    return build


def vision(name: str, **options: Any) -> Build:
    """A model of torchvision."""

    def build() -> nn.Module:
        import torchvision

        model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
        return model

    return build


def timm_model(name: str) -> Build:
    """A model of timm."""

    def build() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name)
        return model

    return build


def _convolutions(inside: int, outside: int) -> nn.Sequential:
    parts = (nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU(inplace=True))
    return nn.Sequential(*parts, nn.Conv2d(outside, outside, 3, padding=1), nn.ReLU(inplace=True))


class UNet(nn.Module):
    """Three levels with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([_convolutions(3, 16), _convolutions(16, 32), _convolutions(32, 64)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)])
        self.join = nn.ModuleList([_convolutions(64, 32), _convolutions(32, 16)])
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for level in self.down:
            x = level(functional.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, reversed(skips[:-1]), strict=True):
            x = join(torch.cat([up(x), skip], 1))
        out: torch.Tensor = self.head(x)
        return out


class Recommender(nn.Module):
    """DLRM (Naumov et al. 2019): bags of embeddings, products of pairs, two stacks of linear layers."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(20_000, 32, mode="sum", sparse=sparse) for _ in range(6))
        self.bottom = nn.Sequential(nn.Linear(13, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(32 + 21, 128), nn.ReLU(), nn.Linear(128, 1))

    def forward(self, dense: torch.Tensor, bags: torch.Tensor) -> torch.Tensor:
        x = self.bottom(dense)
        rows = torch.stack([x, *(table(bags[:, index]) for index, table in enumerate(self.tables))], 1)
        products = rows @ rows.transpose(1, 2)
        above, beside = torch.triu_indices(7, 7, 1)
        out: torch.Tensor = self.top(torch.cat([x, products[:, above, beside]], 1))
        return out


class GraphConvolutions(nn.Module):
    """Two layers of Kipf and Welling 2017, with sums over edges."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(128, 64), nn.Linear(64, 16)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self._passed(self.first(x), edges))
        return self._passed(self.second(x), edges)

    def _passed(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        source, target = edges
        return torch.zeros_like(x).index_add(0, target, x[source])


class GraphAttention(nn.Module):
    """A layer of Velickovic et al. 2018: a softmax over the edges of each node."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.scores = nn.Linear(64, 64), nn.Linear(128, 1)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        source, target = edges
        x = self.values(x)
        score = functional.leaky_relu(self.scores(torch.cat([x[source], x[target]], 1))).squeeze(1).exp()
        total = torch.zeros(len(x), device=x.device).scatter_add(0, target, score)
        weight = score / (total[target] + 1e-9)
        return torch.zeros_like(x).index_add(0, target, x[source] * weight[:, None])


class ConvLSTM(nn.Module):
    """Shi et al. 2015: the gates of an LSTM are convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.head = nn.Conv2d(3 + 16, 64, 3, padding=1), nn.Conv2d(16, 3, 1)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        hidden = frames.new_zeros(frames.shape[0], 16, *frames.shape[3:])
        cell = torch.zeros_like(hidden)
        for frame in frames.unbind(1):
            into, keep, out, new = self.gates(torch.cat([frame, hidden], 1)).chunk(4, 1)
            cell = keep.sigmoid() * cell + into.sigmoid() * new.tanh()
            hidden = out.sigmoid() * cell.tanh()
        result: torch.Tensor = self.head(hidden)
        return result


class Recomputed(nn.Module):
    """Blocks that the model itself recomputes."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(128, 4, 512, batch_first=True, dropout=0.1) for _ in range(4)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.requires_grad_()
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return x


class Autoencoder(nn.Module):
    """A variational autoencoder that returns its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = (
            nn.Linear(784, 400),
            nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784)),
        )
        self.mean, self.variance = nn.Linear(400, 20), nn.Linear(400, 20)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = functional.relu(self.encode(x))
        mean, variance = self.mean(hidden), self.variance(hidden)
        sample = mean + torch.randn_like(mean) * (0.5 * variance).exp()
        rebuilt = self.decode(sample)
        divergence = -0.5 * torch.mean(1 + variance - mean.pow(2) - variance.exp())
        return {"loss": functional.binary_cross_entropy_with_logits(rebuilt, x) + divergence, "rebuilt": rebuilt}


class Temporal(nn.Module):
    """Dilated causal convolutions with a norm of their weights."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for level in range(4):
            gap = 2**level
            layer = nn.Conv1d(32, 32, 3, padding=2 * gap, dilation=gap)
            layers += [nn.utils.parametrizations.weight_norm(layer), nn.ReLU(), nn.Dropout(0.1)]
        self.body = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.body(x)
        return out


class Experts(nn.Module):
    """A mixture of experts by products with a mask: each token is sent to the two best of eight."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(64, 8, bias=False)
        self.up, self.down = nn.Parameter(torch.randn(8, 64, 256)), nn.Parameter(torch.randn(8, 256, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2)
        mask = torch.zeros(*x.shape[:2], 8, device=x.device).scatter(2, chosen, weights)
        hidden = functional.silu(torch.einsum("btd,edh->beth", x, self.up))
        return torch.einsum("beth,ehd,bte->btd", hidden, self.down, mask)


class Recurrent(nn.Module):
    """Two directions of a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(64, 128, 2, batch_first=True, bidirectional=True), nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.gru(x)[0][:, -1])
        return out


class Watched(nn.Module):
    """An attention that returns its weights, after an encoder, as torch's kernels run them without gradients."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.encoder, self.attention = nn.TransformerEncoder(layer, 2), nn.MultiheadAttention(64, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.encoder(x)
        out: tuple[torch.Tensor, torch.Tensor] = self.attention(x, x, x)
        return out


class Windows(nn.Module):
    """Windows of a map that are mixed and put back."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Linear(72, 32), nn.GELU(), nn.Linear(32, 72))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        columns = functional.unfold(x, 3, padding=1).transpose(1, 2)
        return functional.fold(self.mix(columns).transpose(1, 2), x.shape[2:], 3, padding=1)


class Frames(nn.Module):
    """Mnih et al. 2015: values of actions in Atari's games, from four frames."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(),
            nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 6),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.body(x)
        return out


class Critic(nn.Module):
    """Gulrajani et al. 2017: the slope between real and made images is held at one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 4, 2, 1))
        self.head = nn.Sequential(nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(2048, 1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        made = torch.rand_like(x)
        with torch.enable_grad():
            between = (0.5 * x + 0.5 * made).requires_grad_()
            scores = self.head(self.body(between))
            (slope,) = torch.autograd.grad(scores, between, torch.ones_like(scores), create_graph=True)
        penalty = (slope.flatten(1).norm(2, 1) - 1).pow(2).mean()
        return {"loss": self.head(self.body(made)).mean() - self.head(self.body(x)).mean() + 10 * penalty}


def frozen(build: Build, trained: str) -> Build:
    """A model of which the parameters whose names begin with `trained` are trained."""

    def made() -> nn.Module:
        model = build()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(trained))
        return model

    return made


TEXT = "int64[2, 64]"
IMAGE = "float32[2, 3, 96, 96]"
SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 344, "vocab_size": 1000, "use_cache": False}
GPT2 = {"n_layer": 2, "n_embd": 128, "n_head": 4, "vocab_size": 1000, "use_cache": False}
CLIP = {
    "text_config": {**SMALL, "intermediate_size": 256, "vocab_size": 1000},
    "vision_config": {**SMALL, "intermediate_size": 256, "image_size": 64, "patch_size": 16},
}
WHISPER = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "use_cache": False,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256, "max_source_positions": 100,
    "vocab_size": 1000, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip

KINDS: dict[str, Kind] = {
    "unet": Kind(UNet, "float32[2, 3, 64, 64]", {"loss": "cross_entropy"}),
    "mamba": Kind(
        transformers_model("MambaForCausalLM", "MambaConfig", hidden_size=64, num_hidden_layers=2, vocab_size=500),
        "int64[1, 32]",
    ),
    "mixtral": Kind(transformers_model("MixtralForCausalLM", "MixtralConfig", **LLAMA, num_local_experts=4), TEXT),
    "mask experts": Kind(Experts, "float32[2, 32, 64]"),
    "dlrm dense": Kind(lambda: Recommender(sparse=False), {"dense": "float32[32, 13]", "bags": "int64[32, 6, 4]"}, {}, "sgd"),
    "dlrm sparse": Kind(lambda: Recommender(sparse=True), {"dense": "float32[32, 13]", "bags": "int64[32, 6, 4]"}, {}, "sgd"),
    "gcn": Kind(GraphConvolutions, {"x": "float32[500, 128]", "edges": "int64[2, 3000]"}, {}, "adam"),
    "gat": Kind(GraphAttention, {"x": "float32[500, 64]", "edges": "int64[2, 3000]"}, {}, "adam"),
    "recomputed": Kind(lambda: Recomputed(reentrant=False), "float32[4, 32, 128]"),
    "recomputed reentrant": Kind(lambda: Recomputed(reentrant=True), "float32[4, 32, 128]"),
    "resnet50 autocast": Kind(vision("resnet50"), IMAGE, {"precision": "bf16-mixed"}, "sgd"),
    "vit autocast": Kind(timm_model("vit_tiny_patch16_224"), "float32[2, 3, 224, 224]", {"precision": "bf16-mixed"}),
    "llama bf16": Kind(transformers_model("LlamaForCausalLM", "LlamaConfig", **LLAMA), TEXT, {"precision": "bf16"}),
    "bert adafactor": Kind(transformers_model("BertModel", "BertConfig", **SMALL, intermediate_size=512), TEXT, {}, "adafactor"),
    "clip": Kind(
        transformers_model("CLIPModel", "CLIPConfig", **CLIP),
        {"input_ids": "int64[2, 16]", "pixel_values": "float32[2, 3, 64, 64]"},
    ),
    "convlstm": Kind(ConvLSTM, "float32[2, 4, 3, 32, 32]"),
    "whisper": Kind(
        transformers_model("WhisperForConditionalGeneration", "WhisperConfig", **WHISPER),
        {"input_features": "float32[1, 80, 200]", "decoder_input_ids": "int64[1, 16]"},
    ),
    "efficientnet": Kind(vision("efficientnet_b0"), IMAGE, {}, "rmsprop"),
    "efficientnet timm": Kind(timm_model("efficientnet_b0"), IMAGE, {}, "sgd"),
    "mobilenet v3": Kind(vision("mobilenet_v3_small"), IMAGE, {}, "rmsprop"),
    "densenet": Kind(vision("densenet121"), "float32[1, 3, 64, 64]", {}, "sgd"),
    "video": Kind(vision("r3d_18"), "float32[1, 3, 4, 32, 32]", {}, "sgd"),
    "segmentation": Kind(vision("lraspp_mobilenet_v3_large", weights_backbone=None), "float32[2, 3, 64, 64]", {}, "sgd"),
    "t5": Kind(
        transformers_model(
            "T5ForConditionalGeneration", "T5Config", d_model=64, d_ff=128, num_layers=2, num_heads=4, vocab_size=500,
            d_kv=16, decoder_start_token_id=0, use_cache=False,
        ),
        {"input_ids": "int64[2, 16]", "decoder_input_ids": "int64[2, 8]"},
        {},
        "adafactor",
    ),
    "wav2vec2": Kind(
        transformers_model("Wav2Vec2Model", "Wav2Vec2Config", **SMALL, intermediate_size=256, mask_time_prob=0.0, layerdrop=0.0),
        "float32[1, 4000]",
    ),
    "autoencoder": Kind(Autoencoder, "float32[16, 784]", {}, "adagrad"),
    "temporal": Kind(Temporal, "float32[4, 32, 128]"),
    "gru": Kind(Recurrent, "float32[4, 16, 64]"),
    "accumulated": Kind(transformers_model("GPT2LMHeadModel", "GPT2Config", **GPT2), TEXT, {"gradient_accumulation": 2}),
    "frozen": Kind(frozen(vision("resnet18"), "fc"), IMAGE, {}, "sgd"),
    "watched attention": Kind(Watched, "float32[2, 128, 64]", {}, "infer"),
    "windows": Kind(Windows, "float32[2, 8, 32, 32]"),
    "frames": Kind(Frames, "float32[8, 4, 84, 84]"),
    "critic": Kind(Critic, "float32[8, 3, 32, 32]", {}, "adam"),
    "segformer": Kind(
        transformers_model(
            "SegformerForSemanticSegmentation", "SegformerConfig", depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 64, 64],
            num_attention_heads=[1, 2, 4, 4], decoder_hidden_size=64,
        ),
        IMAGE,
    ),
    "speech": Kind(
        transformers_model(
            "Wav2Vec2ForCTC", "Wav2Vec2Config", **SMALL, intermediate_size=256, vocab_size=32, mask_time_prob=0.0,
            layerdrop=0.0,
        ),
        {"input_values": "float32[1, 4000]", "labels": "int64[1, 5]"},
    ),
}  # fmt: skip
"""The kinds by name."""
