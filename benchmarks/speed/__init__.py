"""What benchmarks/gpu.py is made of: shapes and their floors, a clock, our way, the reference's way, and a report."""
