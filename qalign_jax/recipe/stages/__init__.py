"""The kinds of stages, one module a kind; base.py says what a kind is."""
