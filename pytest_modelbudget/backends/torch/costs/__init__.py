"""What an operator of torch costs: its calls as the FLOP rules take them (`rules`), and products of sparse operands."""
