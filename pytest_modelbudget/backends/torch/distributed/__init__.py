"""A step of training on one of many ranks: FSDP2, DDP, tensor parallelism, in a world that is all in this process."""
