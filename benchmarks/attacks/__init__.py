"""What `benchmarks/attack.py` does to the package, one module for each kind of attack."""
