"""A model's worker process as the peer sees it: started, called, sharing memory, started again."""
