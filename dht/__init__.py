"""The overlay as pure machines: time, randomness and messages come in, effects go out as results."""

if __name__ != "modelnet_p2p.dht":  # a second copy of every class would follow
    raise ImportError(f"import modelnet_p2p.dht, not {__name__!r}")
