"""What goes wrong around a run: signals, pre-emption, storage, damaged files, a second start."""
