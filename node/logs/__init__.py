"""What a peer writes of itself: how much, into which file, and how that is read."""
