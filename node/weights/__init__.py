"""A model's files: their digest, and how they travel from peer to peer."""
