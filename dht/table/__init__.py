"""Whom a peer knows: its buckets, how fast their peers come and go, and how many there are in all."""
