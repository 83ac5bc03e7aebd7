"""Python and the operating system: files, streams, processes, whose code a frame is; knows nothing of models."""
