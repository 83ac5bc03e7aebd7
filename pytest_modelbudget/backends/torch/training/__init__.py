"""A whole step of training, or a forward pass without gradients, recorded as a recipe asks for it."""
