"""The LLaMA family: the model, its architecture and execution, its sizes."""
