"""Memory of runs of JAX models: what a recipe means, its traced step, its arrays, the compiler's own sum, the plan.

Nothing is run and no device is started; where a recipe asks for the compiler, that of the CPU is.
"""
