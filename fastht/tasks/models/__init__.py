"""Models of the tasks: towers, what a method adds to them, heads and baselines."""
