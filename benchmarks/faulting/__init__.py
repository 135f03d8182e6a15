"""The parts of benchmarks/faults.py, and of the trials on sabotaged code (failing.py)."""
