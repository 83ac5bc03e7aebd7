"""What costs nothing by rule: the names of operators and layers, a file for each framework."""
