"""The machine: what is installed, memory, processes, CUDA graphs."""
