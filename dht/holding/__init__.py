"""What a peer keeps for others, what it answers, and what strangers may cost it."""
