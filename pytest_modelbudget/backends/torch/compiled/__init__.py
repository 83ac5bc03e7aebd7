"""Runs of a model as torch.compile with Inductor makes them: captured and partitioned by torch, fused by a rule."""
