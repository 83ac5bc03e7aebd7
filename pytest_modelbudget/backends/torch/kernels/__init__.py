"""Kernels as devices have them, run on the meta device: attention, memory layouts, recurrent layers, workspaces."""
