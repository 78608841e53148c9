"""From source files to packed batches; knows no model."""
