"""Makes files of torch models: exported programs, state dicts, and programs with control flow. All are small."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

Tensors = tuple[torch.Tensor, ...]


class Attention(nn.Module):
    """A block of GPT-2: attention of two heads with a causal mask, and two products of the inner width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norm(x)).chunk(3, -1)
        heads = (part.reshape(batch, length, 2, width // 2).transpose(1, 2) for part in parts)
        attended = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.inner(x)


class Tied(nn.Module):
    """A language model of two blocks whose head is its embedding."""

    def __init__(self, vocabulary: int = 50, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.Sequential(Attention(width), Attention(width))
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.ones(1))
        self.blocks[0].norm.weight.requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embedding(ids) * self.scale))


class Recurrent(nn.Module):
    """A stack of recurrent layers in both directions, a cell, and attention that is taken apart."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 4, num_layers=2, bidirectional=True, batch_first=True, proj_size=3)
        self.gru, self.cell = nn.GRU(6, 5), nn.LSTMCell(5, 3)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.lstm(x)[0]
        x = self.gru(self.attention(x, x, x)[0])[0]
        return self.cell(x[0])[0]


class Transposed(nn.Module):
    """Convolutions there and back, one of them called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.same = nn.Conv2d(3, 6, 3, stride=2, groups=3), nn.Conv2d(6, 6, 3, padding="same")
        self.norm, self.up = nn.BatchNorm2d(6), nn.ConvTranspose2d(6, 3, 4, stride=2)
        self.line = nn.Sequential(nn.Conv1d(3, 2, 3), nn.ReLU(inplace=True), nn.ConvTranspose1d(2, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(self.same(self.norm(self.same(self.down(x)))))
        return self.line(x.flatten(2))


class Products(nn.Module):
    """Products under all their names."""

    def __init__(self) -> None:
        super().__init__()
        self.bilinear, self.weight = nn.Bilinear(4, 5, 3), nn.Parameter(torch.ones(4, 5))

    def forward(self, x: torch.Tensor) -> Tensors:
        left = x @ self.weight
        pairs = torch.einsum("bij,bkj->bik", left, left)
        vectors = torch.mv(self.weight, left[0, 0]), torch.matmul(left[0, 0], left[0, 1])
        moved = torch.addmm(left[0], x[0], self.weight), torch.tensordot(x, self.weight, dims=([2], [0]))
        apart = torch.cdist(x, x), torch.fft.irfft(torch.fft.rfft(x, n=8), n=6)
        return (pairs, torch.bmm(pairs, left), self.bilinear(x, left), *vectors, *moved, *apart)


class Branches(nn.Module):
    """Two branches of which one runs."""

    def __init__(self, same: bool) -> None:
        super().__init__()
        self.small, self.large = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 8))
        self.same = same

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        other: nn.Module = self.small if self.same else self.large
        return torch.cond(x.sum() > 0, lambda x: self.small(x), lambda x: other(x), (x,))


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensors]] = {
    "language model": (Tied, (torch.zeros(1, 16, dtype=torch.int64),)),
    "recurrent": (Recurrent, (torch.zeros(2, 7, 8),)),
    "transposed": (Transposed, (torch.zeros(2, 3, 17, 17),)),
    "products": (Products, (torch.zeros(2, 6, 4),)),
    "branches": (lambda: Branches(same=False), (torch.zeros(2, 8),)),
    "equal branches": (lambda: Branches(same=True), (torch.zeros(2, 8),)),
}
"""Models, and what they are called with."""


def export(model: nn.Module, inputs: Tensors, path: Path, *sizes: dict[int, Any]) -> Path:
    """Export a model into a file, whose inputs have dynamic `sizes`."""
    program = torch.export.export(model.eval(), inputs, dynamic_shapes=sizes or None)
    torch.export.save(program, path)
    return path


def dynamic(least: int = 2, **axes: int) -> dict[int, Any]:
    """Axes of an input of any size by their names."""
    return {axis: torch.export.Dim(name, min=least, max=4096) for name, axis in axes.items()}


def save(content: object, path: Path, *, old: bool = False) -> Path:
    """Write what `torch.save` makes of something, as torch 1.5 did it where `old`."""
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    return path


def as_older_torch(path: Path, version: str) -> Path:
    """A program as torch 2.8 or 2.7 wrote it, with its weights in state dicts; torch of today reads both."""
    with zipfile.ZipFile(path) as file:
        parts = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    program = torch.export.load(path)
    weights, constants = _saved(dict(program.state_dict)), _saved(dict(program.constants))
    if version == "2.8":
        parts = {name: raw for name, raw in parts.items() if not name.startswith(("data/weights/", "data/constants/"))}
        parts |= {"data/weights/model.pt": weights, "data/constants/model.pt": constants}
        folder = "m/"
    else:
        folder, schema = "", json.loads(parts["models/model.json"])["schema_version"]
        parts = {
            "version": f"{schema['major']}.{schema['minor']}".encode(),
            "serialized_exported_program.json": parts["models/model.json"],
            "serialized_state_dict.pt": weights,
            "serialized_constants.pt": constants,
            "serialized_example_inputs.pt": parts["data/sample_inputs/model.pt"],
        }
    older = path.with_name(f"older_{path.name}")
    with zipfile.ZipFile(older, "w") as file:
        for name, raw in parts.items():
            file.writestr(folder + name, raw)
    return older


def _saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
