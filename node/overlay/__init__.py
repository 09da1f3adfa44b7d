"""The overlay's driver: carries the messages that the pure machines of `dht/` decide upon."""
