"""Hugging Face transformers models from a local directory. Only `backend` and what it loads imports torch."""
