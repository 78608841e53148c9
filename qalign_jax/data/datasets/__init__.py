"""The data sets, a TFDS builder a file, which is its `BUILDER`."""
