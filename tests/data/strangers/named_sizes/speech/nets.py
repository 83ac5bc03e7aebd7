from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Dimensions:
    n_mels: int
    n_audio_ctx: int
    n_state: int
    n_vocab: int


class Encoder(nn.Module):
    def __init__(self, n_mels: int, n_ctx: int, n_state: int):
        super().__init__()
        self.first = nn.Conv1d(n_mels, n_state, kernel_size=3, padding=1)
        self.second = nn.Conv1d(n_state, n_state, kernel_size=3, stride=2, padding=1)
        self.register_buffer("positional_embedding", torch.zeros(n_ctx, n_state))

    def forward(self, x: Tensor):
        x = torch.relu(self.second(torch.relu(self.first(x)))).permute(0, 2, 1)
        assert x.shape[1:] == self.positional_embedding.shape, "incorrect audio shape"
        return x + self.positional_embedding


class Speech(nn.Module):
    def __init__(self, dims: Dimensions):
        super().__init__()
        self.encoder = Encoder(dims.n_mels, dims.n_audio_ctx, dims.n_state)
        self.words = nn.Embedding(dims.n_vocab, dims.n_state)

    def forward(self, mel: Tensor, tokens: Tensor):
        return self.words(tokens) @ self.encoder(mel).transpose(1, 2)
