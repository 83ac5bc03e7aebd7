"""Real training of a mixture of Hugging Face's over several processes, by its own expert parallelism: run as a module.

`python -m tests.backends.torch.real_hugging_face_experts RANKS CASE...` prints, as `real_experts`, what rank 0 measured.
The model shares itself out as `from_pretrained(distributed_config=...)` has it do. The router chooses experts in turn.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

from tests.backends.torch import real_ranks
from tests.backends.torch.real_experts import CHOSEN, EXPERTS, INNER, measured_on_tokens
from tests.backends.torch.real_ranks import VOCABULARY, WIDTH

LAYERS = 2


def mixtral() -> MixtralForCausalLM:
    """A small one."""
    config = MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=4, num_local_experts=EXPERTS, num_experts_per_tok=CHOSEN,
        use_cache=False, attn_implementation="eager", experts_implementation="grouped_mm",
    )  # fmt: skip
    return MixtralForCausalLM(config)


def _logits() -> nn.Module:
    """The same, which returns its logits alone."""
    model = mixtral()
    forward = model.forward
    model.forward = lambda ids: forward(ids).logits
    return model


def share(model: nn.Module, ranks: int, experts_over: int) -> nn.Module:
    """Have the model share itself out over ranks of FSDP, with experts over some of them."""
    from transformers.distributed import DistributedConfig
    from transformers.distributed.utils import TransformersDeviceMesh

    config = DistributedConfig(fsdp_size=ranks, ep_size=experts_over)
    dense = init_device_mesh("cpu", (1, 1, ranks, 1), mesh_dim_names=("pp", "dp_replicate", "fsdp", "tp"))
    shape = (1, 1, ranks // experts_over, experts_over)
    experts = init_device_mesh("cpu", shape, mesh_dim_names=("pp", "dp_replicate", "efsdp", "ep"))
    return type(model).maybe_distribute_model(model, config, TransformersDeviceMesh(dense, experts))


CASES = {
    "ep 2": (_logits, lambda model, ranks: share(model, ranks, 2)),
    "ep 4": (_logits, lambda model, ranks: share(model, ranks, 4)),
}


def _in_turn(self: Any, hidden_states: torch.Tensor) -> Any:
    logits, scores, chosen = _by_scores(self, hidden_states)
    return logits, scores, torch.arange(chosen.numel()).view_as(chosen) % EXPERTS


_by_scores = MixtralTopKRouter.forward


def _measured(rank: int, ranks: int, cases: list[str]) -> dict[str, dict[str, int]]:
    MixtralTopKRouter.forward = _in_turn
    return measured_on_tokens(CASES, ranks, cases)


if __name__ == "__main__":
    real_ranks.main(_measured)
