"""The kinds of stages, one module a kind; base.py defines the protocol."""
