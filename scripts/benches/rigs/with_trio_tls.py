"""The bare trio stream, inside TLS 1.3."""

from __future__ import annotations

from benches.rigs.with_trio import main

if __name__ == "__main__":
    main(tls=True, module="benches.rigs.with_trio_tls")
