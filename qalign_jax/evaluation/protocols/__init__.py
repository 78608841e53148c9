"""Protocols that judge an output against the published answer, one a file."""
