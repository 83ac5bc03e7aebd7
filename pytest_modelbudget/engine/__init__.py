"""From a registered entry to its result: the builder's name, the build, the summary, the plans, the decision."""
