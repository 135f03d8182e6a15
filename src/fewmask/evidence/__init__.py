"""What the numbers of a study can carry: differences, intervals, curves, similarity."""
