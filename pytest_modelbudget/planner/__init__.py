"""Will it fit? Peak memory of inference and of training: events -> timeline -> peak.

The rooms: `recipe` is what is to be run, `recipe_keys` how it is written, which `recipe_reading` reads;
`memory_trace` the events of a run, which a backend records; `timeline` says what is alive when, and what at the peak;
`allocator` replays the events through the caching allocator of `segments`; `libraries` adds the workspaces of BLAS
and of convolutions; `devices` knows the cards. `memory` puts these together into a plan, `fitting` and `advice` say
what it fits and what would help. `sums` are plans without a memory trace, `growth` the law of a number in a
dimension, `written` recipes of several levels of a manifest, `serving` what an engine keeps of its requests. Nothing
here knows a framework.
"""

from pytest_modelbudget.planner.memory_trace import InitialStorage, MemoryEvent, MemoryTrace
from pytest_modelbudget.planner.recipe import AnyRecipe, Inference, Recipe, Serving, Training

__all__ = ["AnyRecipe", "Inference", "InitialStorage", "MemoryEvent", "MemoryTrace", "Recipe", "Serving", "Training"]
