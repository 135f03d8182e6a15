"""The study: starting points x label budgets x repeats on one held-out test set."""
