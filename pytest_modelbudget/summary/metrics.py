"""The one table of metrics: the numbers of a model that limits, reports and trackers know, each in one row.

A new metric is a row of `METRICS`, with the function that reads it from a summary, and a row of the table in
docs/reference/metrics.md.
"""

from __future__ import annotations

from dataclasses import replace

from pytest_modelbudget import units
from pytest_modelbudget.summary import embeddings
from pytest_modelbudget.summary.metric import Metric as Metric
from pytest_modelbudget.summary.metric_kinds import (
    PEAK,
    file_metric,
    from_notes,
    of_cache,
    planned,
    reason,
    serving_metric,
    uncounted,
    unplanned,
    work_metric,
)
from pytest_modelbudget.summary.model import Summary
from pytest_modelbudget.summary.numbers import Number as Number
from pytest_modelbudget.summary.plan import Kind

_TABLE = (
    Metric(
        "params",
        "count",
        lambda summary: summary.params,
        "elements of the parameters, a shared one once",
        "params",
        "params/total",
        line="Total params",
        stored=True,
        grows=True,
        additive=True,
        of_layers=True,
        charted=True,
    ),
    Metric(
        "trainable_params",
        "count",
        lambda summary: summary.trainable_params,
        "params that are trained",
        "trainable",
        "params/trainable",
        line="Trainable params",
        stored=True,
        grows=True,
        additive=True,
        of_layers=True,
        charted=True,
    ),
    Metric(
        "non_trainable_params",
        "count",
        lambda summary: summary.non_trainable_params,
        "params that are not trained",
        "frozen",
        "params/non_trainable",
        line="Non-trainable params",
        stored=True,
        grows=True,
        additive=True,
        of_layers=True,
    ),
    Metric(
        "non_embedding_params",
        "count",
        lambda summary: summary.non_embedding_params,
        "params but for those of look-up tables (embedding layers) and of heads tied to one",
        "non-emb.",
        "params/non_embedding",
        line="Non-embedding params",
        listed=lambda summary: summary.non_embedding_params != summary.params,
        grows=True,
        additive=True,
        why_unknown=lambda summary: reason(embeddings.why_unknown(summary)),
    ),
    Metric(
        "buffers",
        "count",
        lambda summary: summary.buffers,
        "elements of torch buffers and of Keras' scales beside quantised weights",
        "buffers",
        "params/buffers",
        line="Buffers",
        listed=lambda summary: bool(summary.buffers),
        stored=True,
        grows=True,
        additive=True,
        of_layers=True,
    ),
    Metric(
        "weight_bytes",
        "bytes",
        lambda summary: summary.weight_bytes,
        "bytes of params and buffers as stored",
        "weights",
        "memory/weights_mib",
        stored=True,
        grows=True,
        additive=True,
        of_layers=True,
        charted=True,
    ),
    Metric(
        "flops",
        "flops",
        lambda summary: summary.flops.value,
        "one forward pass; a multiply-add counts 2",
        "FLOPs",
        "compute/forward_gflops",
        grows=True,
        additive=True,
        of_layers=True,
        law=True,
        charted=True,
        why_unknown=uncounted,
    ),
    Metric(
        "activation_bytes",
        "bytes",
        lambda summary: summary.activation_bytes,
        "bytes held from the forward pass for the backward pass, params and inputs not counted",
        "activations",
        "memory/activations_mib",
        additive=True,
        of_layers=True,
        law=True,
        why_unknown=from_notes("activation"),
    ),
    Metric(
        "inference_peak_bytes",
        "bytes",
        planned("inference", PEAK),
        "most bytes alive at once in one forward pass without gradients, as inference: says",
        "inference",
        "memory/inference_peak_mib",
        grows=True,
        law=True,
        plan="inference",
        of_plan=PEAK,
        on_request=True,
        charted=True,
        why_unknown=unplanned("inference", "{batch: 32, precision: bf16}"),
    ),
    Metric(
        "training_peak_bytes",
        "bytes",
        planned("training", PEAK),
        "most bytes alive at once in one training step, as training: says",
        "training",
        "memory/training_peak_mib",
        grows=True,
        law=True,
        plan="training",
        of_plan=PEAK,
        on_request=True,
        charted=True,
        why_unknown=unplanned("training", "{batch: 32, optimizer: adamw}"),
    ),
    work_metric(
        "bytes_moved",
        "bytes",
        "bytes that the planned training step, or else forward pass, reads and writes at least, however it is fused",
        "moved",
        "memory/moved_mib",
    ),
    work_metric(
        "arithmetic_intensity",
        "ratio",
        "FLOPs of the planned run for each byte that it moves at least",
        "intensity",
        "compute/arithmetic_intensity",
    ),
    work_metric(
        "min_step_seconds",
        "seconds",
        "least time of the planned training step, or else forward pass, on the first device: a lower bound",
        "least time",
        "compute/min_step_ms",
    ),
    serving_metric(
        "serving_peak_bytes",
        PEAK,
        "bytes of weights, cache and the largest pass of an engine that serves the model, as serving: says",
        "serving",
        "memory/serving_peak_mib",
    ),
    serving_metric(
        "kv_cache_bytes",
        of_cache("bytes"),
        "bytes that all requests of an engine keep between its passes, in whole blocks, as serving: says",
        "cache",
        "memory/kv_cache_mib",
    ),
    serving_metric(
        "kv_bytes_per_token",
        of_cache("bytes_per_token"),
        "bytes that a token adds to the cache while every layer keeps it, as serving: says",
        "per token",
        "memory/kv_per_token_mib",
    ),
    Metric(
        "layers",
        "count",
        lambda summary: summary.leaf_count,
        "layers that hold no other layers, sums and concatenations in a forward among them",
        "layers",
        "layers/count",
        grows=True,
    ),
    Metric(
        "largest_layer_share",
        "share",
        lambda summary: summary.largest_layer_share,
        "share of params in the largest layer",
        "largest",
        "layers/largest_share_pct",
        grows=True,
    ),
    Metric(
        "params_per_sample",
        "ratio",
        lambda summary: summary.params_per_sample,
        "params for each training sample",
        "per sample",
        "params/per_sample",
        on_request=True,
        why_unknown=lambda _: "unknown: give the size of the training set as samples",
    ),
    file_metric(
        "file_bytes", "bytes", "bytes of an exported file, with the files of weights beside it", "file/size_mib", "File"
    ),
    file_metric(
        "arena_bytes",
        "bytes",
        "bytes that the runtime of an exported file plans for the tensors between operators",
        "memory/arena_mib",
        "Arena",
    ),
    file_metric("operators", "count", "operators of an exported file", "file/operators", "Operators"),
    file_metric(
        "delegated", "count", "operators of an exported file that a delegate runs", "file/delegated", "Delegated"
    ),
)
_OF_WEIGHTS = frozenset(
    (
        *("params", "trainable_params", "non_trainable_params", "non_embedding_params", "buffers", "weight_bytes"),
        *("largest_layer_share", "params_per_sample"),
    )
)


def _of_all_weights(metric: Metric) -> Metric:
    """`metric`, not known of a model with weights that cannot be seen."""

    def unseen(summary: Summary) -> str:
        return summary.file.unseen if summary.file else ""

    return replace(
        metric,
        get=lambda summary: None if unseen(summary) else metric.get(summary),
        why_unknown=lambda summary: (
            reason(f"at least {metric.get(summary)}, {unseen(summary)} holds weights that cannot be seen")
            if unseen(summary)
            else metric.why_unknown(summary)
        ),
    )


METRICS: dict[str, Metric] = {
    metric.name: _of_all_weights(metric) if metric.name in _OF_WEIGHTS else metric for metric in _TABLE
}
"""Every metric, by name."""

LAYER_METRICS: dict[str, units.Kind] = {
    **{metric.name: metric.kind for metric in _TABLE if metric.of_layers},
    "share": "share",
}
"""What can be limited for the layers that a glob matches; `share` is the layer's share of all params."""

PLAN_METRICS: dict[str, Kind] = {metric.name: metric.plan for metric in _TABLE if metric.plan is not None}
"""Metrics of a plan, and the section of the recipe that asks for it."""

PEAK_METRICS = {name: kind for name, kind in PLAN_METRICS.items() if name == f"{kind}_peak_bytes"}
"""The peaks among them."""

STORED = tuple(metric.name for metric in _TABLE if metric.stored)
"""Metrics that snapshots write down as they are; each is an attribute of `Summary`."""

GROWTH_METRICS = frozenset(metric.name for metric in _TABLE if metric.grows)
"""Metrics that follow from what snapshots record, so that a base has them and growth can be told."""

LAYER_GROWTH_METRICS = frozenset((*(metric.name for metric in _TABLE if metric.stored and metric.of_layers), "share"))
"""The same for layers; snapshots record no FLOPs of a row."""

FILE_METRICS = ("file_bytes", "operators", "delegated", "arena_bytes")
"""Metrics of an exported file, which its snapshot has beside what follows from its rows."""

ADDITIVE_METRICS = tuple(metric.name for metric in _TABLE if metric.additive)
"""Metrics whose sum over several models means something."""

GROWING = tuple(metric.name for metric in _TABLE if metric.law)
"""Metrics whose growth in a dimension can be limited."""
