"""Weights at rest: Orbax state and models, Hugging Face directories, safetensors, LoRA."""
