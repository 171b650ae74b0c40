"""Starts, watches and ends jobs on Cloud TPU slices: `tpu.py` is the program, README.md a guide."""
