"""torch_geometric."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from third_party_models.entry import Entry


def graphs() -> Iterator[Entry]:
    """torch_geometric."""
    import torch_geometric.nn as geometric
    from torch_geometric.data import Batch, Data, HeteroData
    from torch_geometric.utils import to_torch_csr_tensor

    def edges(nodes: int = 20, count: int = 60) -> torch.Tensor:
        return torch.randint(0, nodes, (2, count))

    def graph() -> tuple[Any, ...]:
        return torch.randn(20, 16), edges()

    def adjacent() -> tuple[Any, ...]:
        return torch.randn(20, 16), to_torch_csr_tensor(edges().unique(dim=1), size=(20, 20))

    def adjacent_coo() -> tuple[Any, ...]:
        features, adjacency = adjacent()
        return features, adjacency.to_sparse_coo()

    def molecule(nodes: int) -> Data:
        return Data(x=torch.randn(nodes, 16), edge_index=edges(nodes, 3 * nodes), y=torch.zeros(1))

    def batch() -> tuple[Any, ...]:
        return (Batch.from_data_list([molecule(5), molecule(8), molecule(3)]),)

    class Classifier(nn.Module):
        """Reads a `Data`, and pools each graph of a batch."""

        def __init__(self, convolve: nn.Module, pool: Callable[..., torch.Tensor]) -> None:
            super().__init__()
            self.convolve, self.pool, self.head = convolve, pool, nn.Linear(32, 3)

        def forward(self, data: Data) -> torch.Tensor:
            return self.head(self.pool(self.convolve(data.x, data.edge_index), data.batch))

    class Pooled(nn.Module):
        """Keeps the best half of the nodes."""

        def __init__(self, pool: type) -> None:
            super().__init__()
            self.convolve, self.pool, self.head = geometric.GCNConv(16, 32), pool(32, ratio=0.5), nn.Linear(32, 3)

        def forward(self, data: Data) -> torch.Tensor:
            x = self.convolve(data.x, data.edge_index).relu()
            x, _, _, batch, *_ = self.pool(x, data.edge_index, None, data.batch)
            return self.head(geometric.global_mean_pool(x, batch))

    class Hetero(nn.Module):
        """Users and items, each kind of edge with weights of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.convolve = geometric.HeteroConv(
                {
                    ("user", "buys", "item"): geometric.SAGEConv((8, 16), 24),
                    ("item", "is bought by", "user"): geometric.GATConv((16, 8), 24, add_self_loops=False),
                    ("user", "knows", "user"): geometric.GCNConv(8, 24, add_self_loops=False),
                }
            )
            self.head = nn.Linear(24, 4)

        def forward(self, x_dict: dict[str, Any], edge_index_dict: dict[Any, Any]) -> torch.Tensor:
            return self.head(self.convolve(x_dict, edge_index_dict)["user"])

    def shop() -> HeteroData:
        data = HeteroData()
        data["user"].x, data["item"].x = torch.randn(10, 8), torch.randn(6, 16)
        data["user", "buys", "item"].edge_index = torch.stack([torch.randint(0, 10, (30,)), torch.randint(0, 6, (30,))])
        data["item", "is bought by", "user"].edge_index = data["user", "buys", "item"].edge_index.flip(0)
        data["user", "knows", "user"].edge_index = edges(10, 15)
        return data

    def shopping() -> tuple[Any, ...]:
        return shop().x_dict, shop().edge_index_dict

    class Points(nn.Module):
        """PointNet's set abstraction, with the neighbours as edges."""

        def __init__(self) -> None:
            super().__init__()
            local = geometric.MLP([3 + 16, 32, 32])
            self.convolve, self.head = geometric.PointNetConv(local, geometric.MLP([32, 64])), nn.Linear(64, 5)

        def forward(self, data: Data) -> torch.Tensor:
            return self.head(geometric.global_max_pool(self.convolve(data.x, data.pos, data.edge_index), data.batch))

    def cloud() -> tuple[Any, ...]:
        clouds = [molecule(12), molecule(9)]
        for data in clouds:
            data.pos = torch.randn(data.num_nodes, 3)
        return (Batch.from_data_list(clouds),)

    class Transformer(nn.Module):
        """GraphGPS: local messages and attention over each graph, which is padded to the largest."""

        def __init__(self) -> None:
            super().__init__()
            self.convolve = geometric.GPSConv(16, geometric.GINConv(geometric.MLP([16, 16])), heads=2)

        def forward(self, data: Data) -> torch.Tensor:
            return self.convolve(data.x, data.edge_index, data.batch)

    yield Entry("pyg_gcn", lambda: geometric.GCN(16, 32, 2, 7), graph)
    yield Entry("pyg_gat", lambda: geometric.GAT(16, 32, 2, 7, heads=4, v2=True), graph)
    yield Entry("pyg_sage", lambda: geometric.GraphSAGE(16, 32, 2, 7, jk="lstm"), graph)
    yield Entry("pyg_gin_batch", lambda: Classifier(geometric.GIN(16, 32, 3), geometric.global_add_pool), batch)
    yield Entry("pyg_pna_set2set", lambda: Classifier(
        geometric.PNA(16, 32, 2, aggregators=["mean", "max"], scalers=["identity"], deg=torch.tensor([0, 3, 5, 2])),
        geometric.global_max_pool), batch)  # fmt: skip
    yield Entry("pyg_top_k_pool", lambda: Pooled(geometric.TopKPooling), batch, by_values=True)
    yield Entry("pyg_sag_pool", lambda: Pooled(geometric.SAGPooling), batch, by_values=True)
    yield Entry("pyg_hetero", Hetero, shopping)
    yield Entry("pyg_to_hetero", lambda: geometric.to_hetero(
        geometric.GraphSAGE((-1, -1), 16, 2, 4), shop().metadata()), shopping)  # fmt: skip
    yield Entry("pyg_rgcn", lambda: geometric.RGCNConv(16, 32, 3), lambda: (*graph(), torch.randint(0, 3, (60,))))
    yield Entry("pyg_unet", lambda: geometric.GraphUNet(16, 32, 7, depth=2), graph, by_values=True)
    yield Entry("pyg_points", Points, cloud)
    yield Entry("pyg_gps", Transformer, batch)
    yield Entry("pyg_light_gcn", lambda: geometric.LightGCN(20, 16, 2), lambda: (edges(),))
    yield Entry("pyg_gcn_csr", lambda: geometric.GCN(16, 32, 2, 7), adjacent)
    yield Entry("pyg_gcn_coo", lambda: geometric.GCN(16, 32, 2, 7), adjacent_coo)
