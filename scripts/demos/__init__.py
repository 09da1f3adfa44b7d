"""What `scripts/demo` plays: one module a demo, its `play` puts answers on the stage."""
