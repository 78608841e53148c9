"""Fine-tuning: the step, the optimiser, the loop, checkpoints and metrics."""
