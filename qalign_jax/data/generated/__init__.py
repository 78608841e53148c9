"""The sentences that generated data sets are made of."""
