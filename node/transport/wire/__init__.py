"""Noise and yamux as byte machines: bytes in, bytes and news out; no socket, no clock, no task."""
