"""Compiling ahead of time for a TPU slice, without the TPU: memory, collectives, modelled time."""
