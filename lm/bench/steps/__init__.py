"""One train step of the same model by several codes: what is measured, by whom, in turns.

A code is a module here with `build(shape) -> Subject`; each runs in a process of its own.
"""
