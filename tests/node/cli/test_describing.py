"""What a dry run tells people of a model."""

from __future__ import annotations

from modelnet_p2p.node.cli.describing import described

REPORT = {
    "digest": "sha256:00",
    "licence": "MIT",
    "framework": "onnx",
    "precision": "int8",
    "parameters": 22_600_000,
    "context_length": 256,
    "languages": ["en", "de"],
    "tier": "edge",
    "price": {"usd_per_call": 0.000001, "usd_per_hour": 12.5},
    "tags": ["fast", "tiny"],
    "inputs": [{"name": "x", "kind": "tensor", "dtype": "float32", "shape": [None, 4]}],
    "outputs": [{"name": "words", "kind": "json", "dtype": None, "shape": None}],
    "gives": ["answer", "idempotent"],
    "limits": {"size_bytes": 3 << 20, "latency_us": 1234, "batch_rows": 64},
    "metrics": {"int8_relative_error": 8279},
}


def test_all_that_is_known_is_told() -> None:
    assert dict(described(REPORT)) == {
        "digest": "sha256:00",
        "licence": "MIT",
        "tier": "edge",
        "price": "0.000001 usd_per_call, 12.5 usd_per_hour",
        "tags": "fast, tiny",
        "framework": "onnx",
        "precision": "int8",
        "parameters": "22.6M (22,600,000)",
        "size": "3.0 MiB",
        "latency": "1.23 ms for one small call on this machine",
        "context": "256 tokens",
        "languages": "en, de",
        "input": "x tensor float32 [n,4]",
        "output": "words json",
        "gives": "answer, idempotent",
        "batches": "64 rows of several calls in one step",
        "int8 relative error": "0.008279",
    }


def test_what_nobody_knows_is_left_out() -> None:
    assert described({}) == []
    assert described({"limits": None, "metrics": [], "inputs": None, "parameters": None, "gives": []}) == []
    assert described({"parameters": 67, "limits": {"size_bytes": 1000}}) == [
        ("parameters", "67"),
        ("size", "1000 B"),
    ]
