"""What an operator of torch costs: a rule (`rules`), free (`free_operators`), or not known."""
