import os

import torch

from .nets import Dimensions, Speech

_URLS = {"tiny": "https://example.invalid/tiny.pt", "base": "https://example.invalid/base.pt"}


def load_model(name: str) -> Speech:
    path = os.path.join(os.path.expanduser("~"), f"{name}.pt")
    checkpoint = torch.hub.load_state_dict_from_url(_URLS[name], file_name=path)
    model = Speech(Dimensions(**checkpoint["dims"]))
    model.load_state_dict(checkpoint["weights"])
    return model
