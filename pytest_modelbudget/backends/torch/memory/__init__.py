"""Memory of a pass: what autograd saves, what is held for the backward pass, and every allocation as an event."""
