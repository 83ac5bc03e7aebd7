"""What an argument usually is, told from its name: a guess, and marked as one wherever it is used."""

from __future__ import annotations

import inspect
import re
from typing import Any

_BY_NAME: tuple[tuple[str, Any], ...] = (
    (r"\w*(dropout|drop_rate|drop_path|droprate|p_?drop)\w*", 0.0),
    (r"\w*(head_dim|dim_head|d_head|head_size|dim_per_head|d_k|d_v)s?", 16),
    (r"\w*(mlp|ratio|expansion|mult|multiplier)(_ratio|_factor|_mult)?", 4),
    (r"(\w+_)?n?(um)?_?heads?|nheads?", 4),
    (r"(n|num|number)_?(of_)?(\w+_)?(layers?|blocks?|stages?)|(\w+_)?(layers|depth|blocks)", 2),
    (r"\w*(mlp_dim|ff_dim|ffn_dim|dim_feedforward|d_ff|d_inner|intermediate_size|hidden_features|mlp_hidden\w*)", 128),
    (r"\w*n?_?mels?(_bins|_channels)?|\w*mel_bins|n_?mfcc|freq_bins", 80),
    (r"\w*(vocab|vocabulary)(_size)?|n_?vocab|num_(tokens|embeddings)|n_?tokens?|src_vocab\w*|tgt_vocab\w*", 1000),
    (r"\w*(num|n|nb)?_?(class|classes|labels|categories)|out_features|(out|output)_(dim|size)", 10),
    (r"n_?actions|act(ion)?_dim", 10),
    (r"\w*(image|img|input|im|crop)_?(size|res|resolution)|resolution|image_(height|width)|img_[hw]", 224),
    (r"\w*patch_?size", 16),
    (r"\w*kernel(_size)?s?|ksize|kernel", 3),
    (r"stride|padding|dilation|groups|\w*rate", 1),
    (r"\w*(max|seq|context|ctx|block|text|audio)_?(len|length|size|ctx|tokens)\w*|\w*(seq_?len|sequence_length|n_?ctx|"
     r"n_positions|max_position\w*|block_size|num_frames|frames|maxlen|length|window_size|time_steps|timesteps)", 128),
    (r"(in|input|img|image|n)_?(channels?|chans|ch|planes|nc)|channels|n_?channels|colors", 3),
    (r"\w*(out|mid|hidden|base|stem|dec|enc|skip|bottleneck)_?(channels?|chans|ch|planes|filters)", 32),
    (r"ngf|ndf|filters|planes", 32),
    (r"(in|input|obs|observation|state|features?)_?(features|dim|size|dims)|n_?features|input_dims?", 16),
    (r"\w*(dim|dims|size|width|features|units|hidden|state|embd|embed|model|latent|channels|neurons)", 64),
    (r"\w*(eps|epsilon)", 1e-5),
    (r"\w*(scale|scale_factor|upscale)", 2),
    (r"(n|num)_\w+", 2),
)  # fmt: skip
_PATTERNS = tuple((re.compile(pattern), value) for pattern, value in _BY_NAME)
_SWITCHES = re.compile(
    r"(use|is|with|has|return|enable|do|bias|qkv_bias|causal|batch_first|pre_norm|bidirectional)(_\w+)?"
)
_SIZED = ("int", "float", "bool", "Optional[int]", "int | None", "Optional[float]", "float | None")


class UnknownSize(Exception):
    """Nothing is known of an argument of that name."""


def usual_size(name: str, annotation: Any = inspect.Parameter.empty) -> Any:
    """What an argument of this name usually is.

    Raises:
        UnknownSize: its name says nothing, or it is annotated as something else than a number.
    """
    kind = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    if annotation is not inspect.Parameter.empty and kind not in _SIZED and "Union" not in kind:
        raise UnknownSize(name)
    if kind == "bool" or _SWITCHES.fullmatch(name.lower()):
        return False
    for pattern, value in _PATTERNS:
        if pattern.fullmatch(name.lower()):
            return float(value) if kind == "float" else value
    raise UnknownSize(name)
