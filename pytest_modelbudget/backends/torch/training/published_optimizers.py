"""Optimizers that libraries beside torch publish, as memory alone: they compute nothing that anybody needs.

Each makes the states of the published one in its first step, and in every step the temporaries of its update, in the
same order and for as long. Updates in place take no memory and are left out. What a step does only now and then (new
projections of GaLore and APOLLO, every 200 steps) is done in every one: the plan is that of the highest step.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


class PublishedOptimizer(torch.optim.Optimizer):  # type: ignore[misc]
    """Goes through the parameters that have a gradient, one at a time.

    `WITHOUT_SIZE` are the options of the published one that change no size: they are accepted, and not looked at.
    `notes` are for the reader of the plan, `unified_bytes` are states in unified memory.

    Raises:
        TypeError: an option that the published one does not have, or that is not planned.
    """

    WITHOUT_SIZE: tuple[str, ...] = ("lr", "betas", "eps", "weight_decay")

    def __init__(self, params: Iterable[Any], **options: Any) -> None:
        if unknown := sorted(options.keys() - set(self.WITHOUT_SIZE)):
            raise TypeError(f"{type(self).__name__} has no option {' or '.join(map(repr, unknown))} that is planned")
        super().__init__(params, {"lr": 1e-3})
        self.unified_bytes = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What the numbers of the step do not contain."""
        return ()

    def step(self, closure: Any = None) -> None:
        """One step.

        `names` are the variables of the published loop: what one refers to lives until the next parameter needs it.
        """
        names = SimpleNamespace()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self.update(param, param.grad, self.state[param], names)

    def update(self, param: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], names: Any) -> None:
        """Make the states of `param` where there are none, and the temporaries of its update."""
        raise NotImplementedError


class Lion(PublishedOptimizer):
    """Lion (Chen et al. 2023, arXiv 2302.06675) as in lion-pytorch 0.2: one average, and two temporaries at a time."""

    WITHOUT_SIZE = ("lr", "betas", "weight_decay")

    def update(self, param: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], names: Any) -> None:
        """See `PublishedOptimizer.update`."""
        if not state:
            state["exp_avg"] = torch.zeros_like(param)
        state["exp_avg"].clone().add(gradient)


class Adopt(PublishedOptimizer):
    """ADOPT (Taniguchi et al. 2024, arXiv 2411.02853) as its authors publish it, with many tensors at a time or one.

    The square root of the second average is made twice in a step, so that one at a time has three tensors alive, many
    two lists. Weight decay that is not `decoupled` copies the gradients.
    """

    WITHOUT_SIZE = ("lr", "betas", "eps")

    def __init__(
        self,
        params: Iterable[Any],
        *,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        foreach: bool,
        **options: Any,
    ) -> None:
        super().__init__(params, **options)
        self._foreach, self._copies_gradients = foreach, bool(weight_decay) and not decoupled

    def step(self, closure: Any = None) -> None:
        """One step."""
        if not self._foreach:
            super().step()
            return
        names = SimpleNamespace()
        for params in _by_dtype(self.param_groups):
            states = [self._squares(param, self.state[param]) for param in params]
            if self._copies_gradients:
                names.gradients = torch._foreach_add([param.grad for param in params], params)
            for _ in range(2):
                names.roots = torch._foreach_sqrt(states)
                names.roots = torch._foreach_maximum(names.roots, 1e-6)

    def update(self, param: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], names: Any) -> None:
        """See `PublishedOptimizer.update`."""
        squares = self._squares(param, state)
        if self._copies_gradients:
            names.gradient = gradient.add(param)
        for _ in range(2):
            names.root = torch.clamp(squares.sqrt(), 1e-6)

    def _squares(self, param: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
        squares: torch.Tensor = state["exp_avg_sq"]
        return squares


class Sophia(PublishedOptimizer):
    """Sophia-G (Liu et al. 2023, arXiv 2305.14342) as its authors publish it: an average and the Hessian's diagonal."""

    WITHOUT_SIZE = ("lr", "betas", "rho", "weight_decay")

    @property
    def notes(self) -> tuple[str, ...]:
        """The Hessian is the business of another pass."""
        return ("sophia: the pass that estimates the Hessian, every ten steps or so, is not planned",)

    def update(self, param: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], names: Any) -> None:
        """See `PublishedOptimizer.update`."""
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["hessian"] = torch.zeros_like(param), torch.zeros_like(param)
        names.ratio = (state["exp_avg"].abs() / (0.04 * state["hessian"] + 1e-15)).clamp(None, 1)
        state["exp_avg"].sign()


class AdamMini(PublishedOptimizer):
    """Adam-mini (Zhang et al. 2024, arXiv 2406.16793) as in adam-mini 1.1: a second average for each block of a tensor.

    The blocks go by names, which `block_of` gives for a parameter: biases have one for each element, queries and keys
    one for each `dim * dim / n_heads` elements, embeddings, heads, values and hidden layers one for each row, all else
    one in all.
    """

    ROWS = (
        "embed", "embd", "wte", "lm_head", "output", "final_layer", "v_proj", "wv", "value", "feed_forward", "linear",
        "mlp", "o_proj", "wo", "attn.proj",
    )  # fmt: skip
    HEADS = ("k_proj", "q_proj", "wq", "wk", "query", "key")

    WITHOUT_SIZE = ("lr", "betas", "eps", "weight_decay", "n_kv_heads")

    def __init__(
        self, params: Iterable[Any], *, dim: int = 2048, n_heads: int = 32, names: dict[int, str], **options: Any
    ) -> None:
        super().__init__(params, **options)
        self._head, self._names = dim * dim // n_heads, names

    def update(self, param: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], names: Any) -> None:
        """See `PublishedOptimizer.update`."""
        name = self._names[id(param)].lower()
        if not state:
            state["m"] = torch.zeros_like(param)
        if "bias" in name:
            self._adam_update(param, state, names)
            return
        by_head = any(word in name for word in self.HEADS)
        if not by_head and not any(word in name for word in self.ROWS):
            names.mean = torch.sum(gradient * gradient)
            blocks = names.mean
        else:
            _check_blocks(name, param, self._head if by_head else 0)
            gradient = gradient.view(-1, self._head) if by_head else gradient
            names.mean = blocks = torch.mean(gradient * gradient, dim=1, keepdim=True)
        if "vmean" not in state:
            state["vmean"] = torch.zeros_like(blocks)
        names.h = state["vmean"].sqrt() / 1.0
        names.stepsize = 1.0 / names.h
        names.update = state["m"].view(gradient.shape) * names.stepsize
        names.update.neg()

    @staticmethod
    def _adam_update(param: torch.Tensor, state: dict[str, Any], names: Any) -> None:
        if "v" not in state:
            state["v"] = torch.zeros_like(param)
        names.h = state["v"].sqrt() / 1.0


def _check_blocks(name: str, param: torch.Tensor, head: int) -> None:
    """The published one fails in the same place, with less to go by."""
    if head and param.numel() % head:
        raise ValueError(
            f"{name} has {param.numel():,} elements, which heads of {head:,} (dim * dim / n_heads) do not divide: "
            "give optimizer_options: {dim: ..., n_heads: ...}"
        )
    if not head and param.dim() != 2:
        raise ValueError(f"{name} has {param.dim()} dimensions; adam-mini wants matrices in layers of such a name")


class LowRank(PublishedOptimizer):
    """AdamW on gradients of low rank, for the matrices that are `projected` (by `id`); plain AdamW for the others.

    The gradient of `[m, n]` is projected along its longer side, states are `[m, rank]` or `[rank, n]`. The others come
    first, as in the groups of the published scripts.

    Raises:
        ValueError: a kind of projection that is not planned.
    """

    WITHOUT_SIZE = ("lr", "betas", "eps", "weight_decay", "update_proj_gap", "scale")

    def __init__(
        self, params: Iterable[Any], *, projected: frozenset[int], rank: int, proj_type: str = "std", **options: Any
    ) -> None:
        self._check("proj_type", proj_type, "std")
        super().__init__(sorted(params, key=lambda param: id(param) in projected), **options)
        self._projected, self._rank = projected, rank

    def _check(self, option: str, value: str, *planned: str) -> None:
        if value not in planned:
            raise ValueError(f"{type(self).__name__}: {option} {value} is not planned, only {' and '.join(planned)}")

    @property
    def notes(self) -> tuple[str, ...]:
        """That nothing is of low rank, where that is so."""
        if self._projected:
            return ()
        return (
            "nothing is projected, and all states are those of AdamW: no Linear layer's name contains attn or mlp, as "
            "the published scripts want it; name layers with optimizer_options: {targets: [...]}",
        )

    def update(self, param: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any], names: Any) -> None:
        """See `PublishedOptimizer.update`."""
        projects = id(param) in self._projected
        names.grad = gradient
        if projects:
            right = gradient.shape[0] >= gradient.shape[1]
            state["projection"] = self.projection(gradient, right)
            names.grad = gradient @ state["projection"].t() if right else state["projection"].t() @ gradient
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(names.grad), torch.zeros_like(names.grad)
        names.denom = state["exp_avg_sq"].sqrt().add_(1e-6)
        names.norm_grad = state["exp_avg"] / names.denom
        if projects:
            self.to_full_rank(gradient, state, names)

    def projection(self, gradient: torch.Tensor, right: bool) -> torch.Tensor:
        """A new projection for `gradient`: `[rank, n]` to the `right` of it, `[m, rank]` to its left."""
        raise NotImplementedError

    def to_full_rank(self, gradient: torch.Tensor, state: dict[str, Any], names: Any) -> None:
        """The update in the shape of the parameter, from that of low rank."""
        raise NotImplementedError


class GaLore(LowRank):
    """GaLore (Zhao et al. 2024, arXiv 2403.03507) as in galore-torch 1.0: projections from the gradient's SVD.

    In float32 the projection is a view of the singular vectors, which are kept whole; in half precision it is a copy.
    """

    def __init__(self, params: Iterable[Any], *, rank: int = 128, **options: Any) -> None:
        super().__init__(params, rank=rank, **options)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the solver takes is not known."""
        if not self._projected:
            return super().notes
        return ("galore: the step is one that renews its projections, without the workspace of the SVD",)

    def projection(self, gradient: torch.Tensor, right: bool) -> torch.Tensor:
        """See `LowRank.projection`."""
        matrix = gradient.float()
        copy = matrix.clone()  # the solver overwrites what it is given
        left_vectors, values, right_vectors = torch.linalg.svd(matrix, full_matrices=False)
        del copy
        diagonal = torch.diag(values[: self._rank])
        if right:
            scaled = left_vectors[:, : self._rank] @ diagonal
            basis = right_vectors[: self._rank]
        else:
            basis = left_vectors[:, : self._rank]
            scaled = diagonal @ right_vectors[: self._rank]
        out: torch.Tensor = basis.type(gradient.dtype)
        del scaled
        return out

    def to_full_rank(self, gradient: torch.Tensor, state: dict[str, Any], names: Any) -> None:
        """See `LowRank.to_full_rank`."""
        right = gradient.shape[0] >= gradient.shape[1]
        projection = state["projection"]
        full = names.norm_grad @ projection if right else projection @ names.norm_grad
        names.norm_grad = full * 1.0


class Apollo(LowRank):
    """APOLLO (Zhu et al. 2024, arXiv 2412.05270) as in apollo-torch 1.0: random projections, and the gradient scaled.

    `scale_type` is `channel` (APOLLO) or `tensor` (APOLLO-Mini, of rank 1).
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        rank: int = 256,
        scale_type: str = "channel",
        proj: str = "random",
        **options: Any,
    ) -> None:
        self._check("proj", proj, "random")
        self._check("scale_type", scale_type, "channel", "tensor")
        super().__init__(params, rank=rank, **options)
        self._by_channel = scale_type == "channel"

    def projection(self, gradient: torch.Tensor, right: bool) -> torch.Tensor:
        """See `LowRank.projection`."""
        rows, columns = gradient.shape
        shape = (self._rank, columns) if right else (rows, self._rank)
        matrix = gradient.float()
        projection = torch.randn(shape, device=gradient.device, dtype=torch.float32) / 2.0
        out: torch.Tensor = projection.type(gradient.dtype)
        del matrix
        return out

    def to_full_rank(self, gradient: torch.Tensor, state: dict[str, Any], names: Any) -> None:
        """See `LowRank.to_full_rank`."""
        if self._by_channel:
            dim = 0 if gradient.shape[0] < gradient.shape[1] else 1
            norms = torch.norm(names.norm_grad, dim=dim) / (torch.norm(names.grad, dim=dim) + 1e-8)
            names.factor = norms.unsqueeze(1) if dim == 1 else norms
        else:
            names.factor = torch.norm(names.norm_grad) / (torch.norm(names.grad) + 1e-8)
        names.scaled_grad = gradient * names.factor
        state["scaled_grad"] = torch.norm(names.scaled_grad)
        names.scaled_grad = names.scaled_grad / state["scaled_grad"]
        names.norm_grad = names.scaled_grad


def _by_dtype(groups: Iterable[dict[str, Any]]) -> list[list[Any]]:
    """The parameters that have a gradient, as many at a time as torch takes: those of one group and one dtype."""
    lists: dict[Any, list[Any]] = {}
    for number, group in enumerate(groups):
        for param in group["params"]:
            if param.grad is not None:
                lists.setdefault((number, param.dtype), []).append(param)
    return list(lists.values())


def names_of(model: nn.Module) -> dict[int, str]:
    """The names of a model's parameters, by `id`."""
    return {id(parameter): name for name, parameter in model.named_parameters()}


def linear_weights(model: nn.Module, targets: Iterable[str]) -> frozenset[int]:
    """The weights of Linear layers whose name contains one of `targets`, by `id`."""
    targets = list(targets)
    layers = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return frozenset(id(layer.weight) for name, layer in layers if any(target in name for target in targets))


def named_linear_weights(model: nn.Module, targets: Iterable[str]) -> frozenset[int]:
    """The same of `targets` that a recipe names.

    Raises:
        ValueError: there are none.
    """
    targets = list(targets)
    if weights := linear_weights(model, targets):
        return weights
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    raise ValueError(
        f"no Linear layer's name contains {' or '.join(targets)} (there are {', '.join(names[:3]) or 'none'}): give "
        "optimizer_options: {targets: [...]}"
    )
