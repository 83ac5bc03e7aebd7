"""Averages of weights (EMA): a copy of the model on the device, as `torch.optim.swa_utils.AveragedModel` holds it."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from pytest_modelbudget.backends.torch.memory.recorder import Recorder
from pytest_modelbudget.backends.torch.model.dtensors import local_part


def averaged_weights(weights: Iterable[torch.Tensor], recorder: Recorder) -> list[torch.Tensor]:
    """Copies of `weights`, all parameters and buffers of a model: frozen ones, too, and a rank's part of sharded ones.

    They are held all the time. `get_ema_multi_avg_fn` updates them after the optimizer's step in place, so that it
    takes nothing beside them; implementations that update out of place have two tensors more, one parameter at a time.
    """
    copies = [torch.empty_like(local_part(tensor.detach())) for tensor in weights]
    for copy in copies:
        recorder.hold(copy, "average")
    return copies
