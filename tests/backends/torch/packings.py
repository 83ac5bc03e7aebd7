"""Linear layers as libraries of quantised models lay them out, with their weights unpacked by torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class GPTQ(nn.Module):
    """Integers packed along the input features; `g_idx` says which scale each input feature has."""

    def __init__(self, ins: int, outs: int, bits: int = 4, group: int = 32) -> None:
        super().__init__()
        self.infeatures, self.outfeatures, self.bits, self.group_size = ins, outs, bits, group
        groups = ins // group
        self.register_buffer("qweight", torch.zeros(ins * bits // 32, outs, dtype=torch.int32))
        self.register_buffer("qzeros", torch.zeros(groups, outs * bits // 32, dtype=torch.int32))
        self.register_buffer("scales", torch.zeros(groups, outs))
        self.register_buffer("g_idx", torch.tensor([place // group for place in range(ins)], dtype=torch.int32))
        self.register_buffer("bias", torch.zeros(outs))
        self.wf = torch.arange(0, 32, bits, dtype=torch.int32).unsqueeze(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = 2**self.bits - 1
        zeros = (self.qzeros.unsqueeze(2) >> self.wf.unsqueeze(0)) & low
        whole = (self.qweight.unsqueeze(1) >> self.wf.unsqueeze(-1)) & low
        whole = whole.reshape(-1, self.outfeatures)
        places = self.g_idx.long()
        weight = self.scales[places] * (whole - zeros.reshape(self.scales.shape)[places] - 1)
        return x @ weight + self.bias


class AWQ(nn.Module):
    """Integers packed along the output features; each group of input features has scales and zero points."""

    def __init__(self, ins: int, outs: int, w_bit: int = 4, group: int = 32) -> None:
        super().__init__()
        self.in_features, self.out_features, self.w_bit, self.group_size = ins, outs, w_bit, group
        packed = outs * w_bit // 32
        self.register_buffer("qweight", torch.zeros(ins, packed, dtype=torch.int32))
        self.register_buffer("qzeros", torch.zeros(ins // group, packed, dtype=torch.int32))
        self.register_buffer("scales", torch.zeros(ins // group, outs, dtype=torch.float16))
        self.register_buffer("bias", torch.zeros(outs, dtype=torch.float16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shifts = torch.arange(0, 32, self.w_bit, device=self.qweight.device)
        whole = ((self.qweight[:, :, None] >> shifts) & 15).reshape(self.in_features, -1)
        zeros = ((self.qzeros[:, :, None] >> shifts) & 15).reshape(self.scales.shape)
        each = [part.repeat_interleave(self.group_size, dim=0) for part in (zeros, self.scales)]
        return (x.half() @ ((whole - each[0]) * each[1]) + self.bias).to(x.dtype)


class HQQ(nn.Module):
    """Two integers in a byte, in a parameter; scales and zero points are in a dict, which torch does not look into."""

    def __init__(self, ins: int, outs: int, group: int = 64) -> None:
        super().__init__()
        self.in_features, self.out_features = ins, outs
        groups = ins * outs // group
        self.W_q = nn.Parameter(torch.zeros(groups // 2, group, dtype=torch.uint8), requires_grad=False)
        scale, zero = torch.zeros(groups, 1), torch.zeros(groups, 1)
        self.meta: dict[str, Any] = {
            "nbits": 4,
            "group_size": group,
            "shape": (outs, ins),
            "scale": scale,
            "zero": zero,
        }
        self.bias = torch.zeros(outs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole = torch.cat([(self.W_q & 0xF0) >> 4, self.W_q & 0x0F])
        weight = ((whole - self.meta["zero"]) * self.meta["scale"]).reshape(self.meta["shape"])
        return x @ weight.t() + self.bias


class Hidden(nn.Module):
    """A kernel that torch does not see fills the result; without bits and zero points, as Marlin has it."""

    def __init__(self, ins: int, outs: int, group: int = 32) -> None:
        super().__init__()
        self.infeatures, self.outfeatures, self.group_size = ins, outs, group
        self.register_buffer("B", torch.empty(ins // 16, outs * 16 // 8, dtype=torch.int))
        self.register_buffer("s", torch.empty(ins // group, outs, dtype=torch.half))
        self.register_buffer("bias", torch.zeros(outs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.empty(*x.shape[:-1], self.outfeatures, dtype=x.dtype, device=x.device) + self.bias
