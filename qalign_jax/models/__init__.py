"""The LLaMA family: the model, its sizes, and Hugging Face's weights."""
