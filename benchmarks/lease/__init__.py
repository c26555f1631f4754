"""The stages of ``benchmarks/train_gpu.py``."""
