"""Fine-tuning: the step, the optimizer, the loop, metrics and traces."""
