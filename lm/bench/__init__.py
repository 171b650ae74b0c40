"""Benchmarks, each a subcommand of `python -m lm.bench`, alone or against a baseline."""
