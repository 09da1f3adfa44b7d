"""The only floor that awaits: transport, overlay driver, serving, calls, commands."""

if __name__ != "modelnet_p2p.node":  # a second copy of every class would follow
    raise ImportError(f"import modelnet_p2p.node, not {__name__!r}")
