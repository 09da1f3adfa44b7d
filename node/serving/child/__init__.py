"""A model's worker process from inside: the control socket, the lines of calls, the model's thread."""
