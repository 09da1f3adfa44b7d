"""Who lives: beats, watchers, suspicion, and proofs of death."""
