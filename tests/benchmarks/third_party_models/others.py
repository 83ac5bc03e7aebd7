"""Recommenders, taggers, clouds of points in plain torch; libraries of which there is one model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from third_party_models.entry import IDS, Entry, ids


def tables() -> Iterator[Entry]:
    """Plain torch: recommenders with bags of ids, taggers that pack their sequences, clouds of points."""

    class Dlrm(nn.Module):
        """Dense features and bags of ids, and the products of each pair."""

        def __init__(self) -> None:
            super().__init__()
            self.bags = nn.ModuleList(nn.EmbeddingBag(50, 8, mode="sum", include_last_offset=True) for _ in range(3))
            self.bottom, self.top = nn.Linear(5, 8), nn.Linear(8 + 6, 1)

        def forward(self, dense: torch.Tensor, sparse: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
            low = self.bottom(dense).relu()
            parts = torch.stack([low, *(bag(*pair) for bag, pair in zip(self.bags, sparse, strict=True))], 1)
            rows, columns = torch.tril_indices(4, 4, -1)
            return self.top(torch.cat([low, (parts @ parts.mT)[:, rows, columns]], 1)).sigmoid()

    def clicks() -> tuple[Any, ...]:
        offsets = torch.tensor([0, 2, 5, 6])
        return torch.randn(3, 5), [(torch.randint(0, 50, (6,)), offsets) for _ in range(3)]

    class Tagger(nn.Module):
        """Packs what it reads by its lengths."""

        def __init__(self, kind: type[nn.Module]) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(90, 16, padding_idx=0), nn.Linear(48, 5)
            self.read = kind(16, 24, num_layers=2, bidirectional=True, batch_first=True)

        def forward(self, words: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(
                self.embed(words), lengths, batch_first=True, enforce_sorted=False
            )
            return self.head(nn.utils.rnn.pad_packed_sequence(self.read(packed)[0], batch_first=True)[0])

    class PointNet(nn.Module):
        """Moves each cloud into a frame that it finds, then takes the largest of each feature."""

        def __init__(self) -> None:
            super().__init__()
            self.frame = nn.Sequential(
                nn.Conv1d(3, 16, 1),
                nn.BatchNorm1d(16),
                nn.ReLU(),
                nn.AdaptiveMaxPool1d(1),
                nn.Flatten(),
                nn.Linear(16, 9),
            )
            self.points, self.head = (
                nn.Sequential(nn.Conv1d(3, 32, 1), nn.ReLU(), nn.Conv1d(32, 64, 1)),
                nn.Linear(64, 10),
            )

        def forward(self, cloud: torch.Tensor) -> torch.Tensor:
            turn = self.frame(cloud).reshape(-1, 3, 3) + torch.eye(3, device=cloud.device)
            return self.head(self.points(turn @ cloud).amax(-1))

    class Edges(nn.Module):
        """DGCNN: the nearest neighbours of each point, found anew."""

        def __init__(self) -> None:
            super().__init__()
            self.edge, self.head = nn.Conv2d(6, 16, 1), nn.Linear(16, 4)

        def forward(self, cloud: torch.Tensor) -> torch.Tensor:
            near = torch.cdist(cloud, cloud).topk(4, largest=False).indices
            around = cloud[torch.arange(len(cloud), device=cloud.device)[:, None, None], near]
            pairs = torch.cat([around - cloud[:, :, None], cloud[:, :, None].expand_as(around)], -1)
            return self.head(self.edge(pairs.permute(0, 3, 1, 2)).amax((2, 3)))

    packed = lambda: (ids(3, 10), torch.tensor([10, 4, 7]))  # noqa: E731
    yield Entry("torch_dlrm", Dlrm, clicks)
    yield Entry("torch_tagger_lstm", lambda: Tagger(nn.LSTM), packed)
    yield Entry("torch_tagger_gru", lambda: Tagger(nn.GRU), packed)
    yield Entry("torch_point_net", PointNet, "float32[B, 3, 40]")
    yield Entry("torch_edge_points", Edges, "float32[B, 20, 3]")


def others() -> Iterator[Entry]:
    """x-transformers, vit-pytorch, neuraloperator, Lightning, tensordict, torchdiffeq, e3nn."""
    import lightning
    import torchdiffeq
    import torchmetrics
    import vit_pytorch
    import x_transformers
    from e3nn import o3
    from neuralop.models import FNO
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule, TensorDictSequential

    yield Entry("x_transformers", lambda: x_transformers.TransformerWrapper(
        num_tokens=100, max_seq_len=16, attn_layers=x_transformers.Decoder(
            dim=32, depth=2, heads=4, attn_dim_head=8, rotary_pos_emb=True, ff_glu=True, attn_flash=True)), IDS)  # fmt: skip
    yield Entry("vit_pytorch", lambda: vit_pytorch.ViT(
        image_size=32, patch_size=8, num_classes=5, dim=32, depth=2, heads=4, mlp_dim=48), "float32[B, 3, 32, 32]")  # fmt: skip
    yield Entry("neuralop_fno", lambda: FNO(
        n_modes=(4, 4), hidden_channels=8, in_channels=1, out_channels=1, n_layers=2), "float32[B, 1, 16, 16]")  # fmt: skip

    class Lit(lightning.LightningModule):
        """A classifier as Lightning wants it, with a metric of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
            )
            self.accuracy = torchmetrics.classification.MulticlassAccuracy(5)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.net(image)

    def policy() -> nn.Module:
        body = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 4))
        return TensorDictSequential(
            TensorDictModule(body, in_keys=["observation"], out_keys=["features"]),
            TensorDictModule(nn.Linear(4, 2), in_keys=["features"], out_keys=["action"]),
        )

    class Flow(nn.Module):
        """A neural ODE, whose solver takes as many steps as it needs."""

        def __init__(self, method: str) -> None:
            super().__init__()
            self.net, self.method = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4)), method

        def forward(self, start: torch.Tensor) -> torch.Tensor:
            return torchdiffeq.odeint(
                lambda time, state: self.net(state), start, torch.linspace(0, 1, 5), method=self.method
            )[-1]

    yield Entry("lightning_module", Lit, "float32[B, 3, 32, 32]")
    yield Entry("tensordict_policy", policy, lambda: (TensorDict({"observation": torch.randn(3, 6)}, batch_size=[3]),))
    yield Entry("ode_rk4", lambda: Flow("rk4"), "float32[B, 4]")
    yield Entry("ode_dopri5", lambda: Flow("dopri5"), lambda: (torch.randn(2, 4),), by_values=True)
    yield Entry("e3nn_tensor_product", lambda: o3.FullyConnectedTensorProduct("8x0e + 4x1o", "1x0e + 1x1o", "8x0e + 4x1o"), [
        "float32[B, 20]", "float32[B, 4]"])  # fmt: skip
