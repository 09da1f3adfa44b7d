"""Which operators an exported torch program may use: torch's own on tensors, and arithmetic on their sizes.

A node names its operator as text. Only `torch.ops.aten.NAME.OVERLOAD` is looked up, and only what the
dispatcher has a kernel for, what touches no file and no memory but its tensors', and checks its arguments;
arithmetic is a closed table.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from modelnet_p2p.node.serving.backends.pt2_archive import BadArchive

_ATEN = re.compile(r"torch\.ops\.aten\.([a-z][a-z0-9_]*|_[a-z][a-z0-9_]*)\.([A-Za-z][A-Za-z0-9_]*)", re.ASCII)

# Those whose names begin with a line are inner ones, which trust their arguments; of these the exporter
# makes use.
_INNER = frozenset(
    {
        "_adaptive_avg_pool2d",
        "_assert_scalar",
        "_assert_tensor_metadata",
        "_log_softmax",
        "_native_batch_norm_legit_no_training",
        "_softmax",
        "_to_copy",
        "_unsafe_view",
        "_weight_norm",
    }
)
_OUTSIDE = frozenset({"from_file", "record_stream", "resize", "resize_", "resize_as_", "set", "set_"})
_SIZES = frozenset({"sym_size", "sym_stride", "sym_numel", "sym_storage_offset"})  # have no kernel: they ask
ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    **{
        f"_operator.{name}": getattr(operator, name)
        for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pos", "abs")
    },
    **{f"_operator.{name}": getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{f"_operator.{name}": getattr(operator, name) for name in ("and_", "or_", "not_", "getitem")},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc", "sqrt")},
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_not": operator.not_,
    "torch.sym_sum": sum,
    "torch.sym_int": int,
    "torch.sym_float": float,
}


def operator_of(target: str) -> Any:  # Any: a torch.OpOverload
    """The operator that a node names; raises BadArchive for all that are not served."""
    import torch

    match = _ATEN.fullmatch(target)
    name, overload = match.groups() if match else ("", "")
    # by the dispatcher's own list: no attribute is looked up by a name from the file before this
    known = bool(name) and (
        name in _SIZES or torch._C._dispatch_has_kernel(f"aten::{name}.{overload}".removesuffix(".default"))
    )
    found = getattr(getattr(torch.ops.aten, name, None), overload, None) if known else None
    if found is None or name in _OUTSIDE or name.startswith("sparse_"):
        raise BadArchive(f"its operator {target[:80]!r} is not served")
    if name.startswith("_") and name not in _INNER and torch.Tag.core not in found.tags:
        raise BadArchive(f"its operator {target[:80]!r} is an inner one of torch's, and not served")
    return found
