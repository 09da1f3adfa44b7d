"""The control socket of a running peer: what commands ask it for, and how that travels."""
