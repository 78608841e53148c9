"""From source files to packed batches, without a model."""
