"""Bytes that a forward pass holds for the backward pass: one more pass, in training mode with gradients.

Counted is what autograd saves and still holds when the forward pass is over, each storage whole and once (a view
counts all of the memory behind it), in its own dtype: the masks of dropout, the indices of pooling, the statistics of
normalisation, copies of weights in another dtype. Not counted: parameters, buffers, inputs, the model's outputs as
such, gradients, and the workspace of kernels. Frozen parameters change what is saved, and checkpointing does.

The operators are those that torch runs on the meta device, where kernels of the CPU and of a GPU differ:

- attention is the fused kernel where torch has one for the CPU (no dropout in it): it keeps query, key, value, output
  and one number for each row of the scores; else the scores are kept;
- dropout keeps a mask in the dtype of its input, as on the CPU (on a GPU, one byte for each element);
- normalisation in half precision keeps its statistics in float32, as on a GPU;
- recurrent layers keep the tensors of each step, as GRUs do on the CPU; cuDNN, and oneDNN for LSTMs, run them as one
  kernel with a workspace of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch.autograd.graph import saved_tensors_hooks

from pytest_modelbudget.backends.torch.compat import no_modes
from pytest_modelbudget.backends.torch.kernels.attention import cpu_attention
from pytest_modelbudget.backends.torch.memory.saved_tensors import Activations, NoStorage, SavedTensors
from pytest_modelbudget.backends.torch.model.global_state import global_state_restored_in_pass, seed_everything
from pytest_modelbudget.backends.torch.replay.graph import BackwardThroughReplay
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel, call_of, observed


def measure_activations(runnable: RunnableModel, sizes: Mapping[str, int]) -> Activations | str:
    """What `runnable`, a model on meta, holds for its backward pass, or why that is not known.

    The pass starts from fixed random states, so that layers dropped by chance are the same in each run.
    """
    try:
        return _measure(runnable, sizes, with_replay=runnable.block_cache is not None)
    except BackwardThroughReplay:
        return _measure(runnable, sizes, with_replay=False)


def _measure(runnable: RunnableModel, sizes: Mapping[str, int], with_replay: bool) -> Activations | str:
    call = call_of(runnable, sizes)
    saved = SavedTensors(runnable.model, runnable.attributes)
    if with_replay and runnable.block_cache is not None:
        saved.replay = runnable.block_cache.start(saved)
    try:
        with (
            global_state_restored_in_pass(),
            no_modes(),
            cpu_attention() as attention,
            saved_tensors_hooks(saved.pack, saved.unpack),
        ):
            seed_everything()
            with observed(runnable, call, saved, training=True):
                return replace(saved.still_held(), scores=attention.dropout)
    except BackwardThroughReplay:
        raise
    except NoStorage:
        return "a tensor without a storage of its own is held"
    except Exception as error:  # whatever the model's code raises in training mode
        return (
            f"the pass in training mode failed{saved.failed_layer_text}: {type(error).__name__}: {_first_line(error)}"
        )
    finally:
        saved.replay = None  # it knows `saved`: each would keep the other


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")
