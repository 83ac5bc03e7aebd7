"""The programs of ExecuTorch in tests/data/exported, and what its exporter says of each.

    python -m tests.backends.exported.make_executorch

needs `executorch` and the torch that it was built for; the files in the repository are of executorch 1.5.1. What the
exporter says is read from its own objects, never from the files: planned memory, operators, delegated parts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

FOLDER = Path(__file__).parents[2] / "data" / "exported"


class Convolutions(nn.Module):
    """Convolutions of each kind, with the batch norm of a trained model."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Linear(4, 10)
        for tensor in (self.norm.weight, self.norm.bias, self.norm.running_mean, self.norm.running_var):
            nn.init.uniform_(tensor, 0.5, 1.5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.depthwise(torch.relu(self.norm(self.stem(image)))))
        return self.head(self.up(features).mean((2, 3)))


class Attention(nn.Module):
    """A block of a language model with tied embeddings, a frozen part, a state and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.norm = nn.LayerNorm(16)
        self.attention = nn.Linear(16, 48)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("mask", torch.ones(12, 12).tril().log())
        self.register_buffer("steps", torch.zeros(1))
        nn.init.uniform_(self.norm.weight)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.steps.add_(1.0)
        hidden = self.norm(self.frozen(self.embedding(tokens)))
        query, key, value = self.attention(hidden).view(1, 12, 3, 2, 8).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=self.mask)
        return self.head(mixed.transpose(1, 2).reshape(1, 12, 16)) * self.steps


class Branches(nn.Module):
    """One of two layers, by an input; both begin with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large, self.twin = nn.Linear(8, 8), nn.Linear(8, 32), nn.Linear(8, 8)
        self.twin.load_state_dict(self.small.state_dict())

    def forward(self, is_small: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
        chosen = torch.cond(is_small, lambda x: self.small(x), lambda x: self.large(x)[:, ::4] + 0.0, (data,))
        return self.twin(chosen)


class Dynamic(nn.Module):
    """A product of a batch of any size up to 16."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        return self.layer(data).softmax(-1)


def source(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """The model that a file was made from, and what it is called with."""
    torch.manual_seed(0)
    makers: dict[str, tuple[type[nn.Module], tuple[torch.Tensor, ...]]] = {
        "convolutions": (Convolutions, (torch.randn(1, 3, 16, 16),)),
        "attention": (Attention, (torch.zeros(1, 12, dtype=torch.int64),)),
        "branches": (Branches, (torch.tensor(True), torch.randn(4, 8))),
        "dynamic": (Dynamic, (torch.randn(16, 8),)),
    }
    model, arguments = makers[name.partition("-")[0]]
    return model().eval(), arguments


def _programs() -> dict[str, Any]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import ExecutorchBackendConfig, to_edge, to_edge_transform_and_lower

    batch = ({0: torch.export.Dim("batch", min=2, max=16)},)
    edges = {
        name: to_edge(torch.export.export(*source(name), dynamic_shapes=batch if name == "dynamic" else None))
        for name in ("convolutions", "attention", "branches", "dynamic", "attention-external")
    }
    programs = {
        name: edge.to_executorch(ExecutorchBackendConfig(external_constants=name.endswith("-external")))
        for name, edge in edges.items()
    }
    exported = torch.export.export(*source("convolutions"))
    delegated = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    quantised = to_edge_transform_and_lower(_quantised("convolutions"), partitioner=[XnnpackPartitioner()])
    return {
        **programs,
        "convolutions-delegated": delegated.to_executorch(),
        "convolutions-quantised": quantised.to_executorch(),
    }


def _quantised(name: str) -> torch.export.ExportedProgram:
    """A model with weights and activations of eight bits, scales by channel."""
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    model, arguments = source(name)
    config = xnnpack_quantizer.get_symmetric_quantization_config(is_per_channel=True)
    quantizer = xnnpack_quantizer.XNNPACKQuantizer().set_global(config)
    prepared = prepare_pt2e(torch.export.export(model, arguments).module(), quantizer)
    prepared(*arguments)
    return torch.export.export(convert_pt2e(prepared), arguments)


def _facts(program: Any) -> dict[str, Any]:
    [plan] = program.execution_plan
    calls = [instruction.instr_args for chain in plan.chains for instruction in chain.instructions]
    kernels = [plan.operators[call.op_index].name for call in calls if hasattr(call, "op_index")]
    return {
        "planned_bytes": sum(plan.non_const_buffer_sizes[1:]),
        "kernels": sorted(kernels),
        "delegated": sum(hasattr(call, "delegate_index") for call in calls),
    }


def main() -> None:
    """Write all of them."""
    FOLDER.mkdir(exist_ok=True)
    facts = {}
    for name, program in _programs().items():
        (FOLDER / f"{name}.pte").write_bytes(program.buffer)
        if name.endswith("-external"):
            program.write_tensor_data_to_file(str(FOLDER))
            (FOLDER / "_default_external_constant.ptd").rename(FOLDER / f"{name}.ptd")
        facts[name] = _facts(program.executorch_program)
    (FOLDER / "executorch.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
