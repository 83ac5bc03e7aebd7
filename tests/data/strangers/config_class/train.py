import torch

from model import LM, LMConfig

model = LM(LMConfig())
for step in range(10):
    model(torch.zeros(1, 8, dtype=torch.long))
