"""What generating text has in common, whichever library computes the tokens: requests, text, chunks."""
