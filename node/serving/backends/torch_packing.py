"""Linear layers of a torch model on the CPU, their weights packed once, as oneDNN wants them.

torch gives the weight of a linear layer to MKL, which packs it anew in each call of two rows and more: with
1,024 inputs and 4,096 outputs two rows take twice as long as one, and 32 four times as long. Packed
beforehand 2 to 32 rows take a half to a third of that, so steps of several callers pay. Answers are the same
but for rounding.

The two operators are private ones of torch's, tried with 2.13.0: what its compiler makes of a linear layer
that is frozen. The public `torch.utils.mkldnn` packs in each call, too, and took 1.4 to 1.9 times as long
with 2 to 32 rows. So each weight is tried when it is packed: where an operator is missing, or does not give
what the plain layer gives, the layer stays plain.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.nn import functional as F

log = logging.getLogger(__name__)

# oneDNN takes some 15 us more to be called. One row is no slower from 2 MiB of weights on; or from a quarter
# of a MiB, where its layers are so many that none finds its weights in a cache.
LARGE = 1 << 19  # weights of a layer
SMALL = 1 << 16  # the same, in a model whose layers of that size have
MANY = 1 << 21  # weights, together
LEAST_SIDE = 64  # inputs or outputs: they are filled up to blocks of that many
ROWS = 16  # of a call, a hint: packed for one row alone 16 take half as long again
TRIED_ROWS = 5
TOLERANCE = 1e-4  # of the largest output: a hundred times what float32 is off by, less than bfloat16 is
TRY_ERRORS = (RuntimeError, AttributeError, TypeError, ValueError, NotImplementedError)
TENSORS = (torch.Tensor, nn.Parameter)  # no classes that are derived of them, which may mean something else
READERS = (nn.TransformerEncoderLayer, nn.MultiheadAttention)  # they take the weights of layers of theirs


class PackedLinear(nn.Linear):  # type: ignore[misc, unused-ignore]  # where torch is not installed
    """A linear layer that holds its weight packed alone, for calls without gradients.

    Whoever reads or sets its `weight`, its state or its dtype, copies it or wants gradients, finds a plain
    layer, which it is from then on: that may be so in each call, and to unpack takes longer than a call.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if _wants_more(input):
            return self.unpacked().forward(input)
        packed, bias = _held(self)
        if not _is_plain(input) or input.shape[-1:] != (self.in_features,):  # the words of the plain layer
            return F.linear(input, packed.to_dense(), bias)
        return apply_packed(input, packed, bias)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override, unused-ignore]  # it is set by way of torch's own
        return self.unpacked().weight

    def unpacked(self) -> nn.Linear:
        """This layer, plain from now on."""
        packed, bias = _held(self)
        with torch.inference_mode(False), torch.no_grad():
            weight = nn.Parameter(packed.to_dense(), packed.requires_grad)
        _become(self, nn.Linear, weight=weight, bias=bias)
        log.debug("%s is plain again: its weight was asked for", self)
        return self

    # Any below: what torch's own method takes and gives.

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        plain: Any = self.unpacked()
        return plain._apply(*args, **kwargs)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unpacked()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unpacked()._load_from_state_dict(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.unpacked().__reduce_ex__(protocol)


def pack(module: nn.Module) -> int:
    """Packs the layers of `module` that gain by it, in place, one after the other; how many those are.

    Their class is `nn.Linear` itself; their weights are of float32, on the CPU, and nobody else's; they have
    no hooks, and are no parts of what is known to read their weights in each call.
    """
    if any(_is_compiled(part) for part in module.modules()):
        return 0
    layers = [layer for layer in _eligible(module) if _size(layer) >= SMALL]
    if sum(map(_size, layers)) < MANY:
        layers = [layer for layer in layers if _size(layer) >= LARGE]
    packed = sum(_pack(layer) for layer in layers)
    if packed:
        _take_in(module)
    if layers:
        log.debug("%d of %d linear layers are packed", packed, len(layers))
    return packed


def unpack(module: nn.Module) -> None:
    """All its layers are plain again."""
    for layer in module.modules():
        if isinstance(layer, PackedLinear):
            layer.unpacked()


def packed_weight(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
    """`weight`, whatever its size, for `apply_packed`; None where that would not give the same."""
    if not _fits(weight, bias) or not torch.backends.mkldnn.enabled:
        return None
    with torch.inference_mode(False), torch.no_grad():
        try:
            packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
            trouble = _trouble(weight, packed, bias)
        except TRY_ERRORS as error:
            trouble = f"{type(error).__name__}: {error}".splitlines()[0]
    if trouble:
        _tell(trouble)
    return None if trouble else packed


def apply_packed(rows: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """What `F.linear` gives for float32 rows [..., inputs] on the CPU."""
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(rows, packed, bias, "none", [], "")
    return found


def _wants_more(input: object) -> bool:
    """Gradients, another dtype, or a transform like vmap, of which the operator knows nothing."""
    return (
        torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or (isinstance(input, torch.Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(input))
    )


def _is_plain(tensor: object) -> TypeGuard[torch.Tensor]:
    return (
        type(tensor) in TENSORS
        and isinstance(tensor, torch.Tensor)
        and tensor.dtype is torch.float32
        and tensor.is_cpu
        and tensor.layout is torch.strided
    )


def _fits(weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    has_sides = weight.ndim == 2 and min(weight.shape) >= LEAST_SIDE
    return has_sides and _is_plain(weight) and (bias is None or _is_plain(bias))


def _trouble(weight: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> str:
    """What the operator does otherwise than the plain layer, with one row and with some."""
    rows = torch.randn(TRIED_ROWS, weight.shape[1], generator=torch.Generator().manual_seed(TRIED_ROWS))
    if _wants_more(rows):
        return "it is packed where another dtype is wanted"
    plain = F.linear(rows, weight, bias)
    scale = float(plain.nan_to_num(0, 0, 0).abs().max())
    for count in (1, TRIED_ROWS):
        found = apply_packed(rows[:count], packed, bias)
        if not torch.allclose(found, plain[:count], rtol=0, atol=TOLERANCE * scale, equal_nan=True):
            return "its answers are others"
    return ""


@cache
def _tell(trouble: str) -> None:
    """Once for all layers that it is with."""
    log.debug("linear layers stay plain: %s", trouble[:200])


# --- layers ---


def _eligible(module: nn.Module) -> Iterator[nn.Linear]:
    readers = [part for part in module.modules() if isinstance(part, READERS)]
    spared = {id(layer) for reader in readers for layer in reader.modules()}
    owners = Counter(_memory(tensor) for tensor in _tensors(module))
    for layer in module.modules():
        if type(layer) is not nn.Linear or id(layer) in spared or not _is_simple(layer):
            continue
        weight, bias = _held(layer)
        if _fits(weight, bias) and owners[_memory(weight)] == 1:
            yield layer


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """Its tensors in plain memory, some of them several times: as often as one has a place."""
    for part in module.modules():
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            if type(tensor) in TENSORS and tensor.is_cpu and tensor.layout is torch.strided:
                yield tensor


def _take_in(module: nn.Module) -> None:
    """Copies what lies in memory of somebody else's, as the pages of a file are: each view, however small,
    keeps all of it, the weights that were packed among it."""
    found = {id(tensor): tensor for tensor in _tensors(module)}
    owners = Counter(_memory(tensor) for tensor in found.values())
    for tensor in found.values():
        if owners[_memory(tensor)] == 1 and not tensor.untyped_storage().resizable():
            tensor.data = tensor.data.clone()


def _size(layer: nn.Linear) -> int:
    return int(layer.in_features * layer.out_features)


def _held(layer: nn.Linear) -> tuple[nn.Parameter, nn.Parameter | None]:
    """Its weight, packed or not, and its bias."""
    weight = layer._parameters["weight"]
    assert weight is not None
    return weight, layer._parameters["bias"]


def _is_simple(layer: nn.Linear) -> bool:
    """Whether it is what its class says: nothing is done around its call, or in place of it."""
    more = (layer._forward_hooks, layer._forward_pre_hooks, layer._buffers, layer._modules)
    has_all = layer._parameters.keys() == {"weight", "bias"} and layer._parameters["weight"] is not None
    return has_all and not any(more) and "forward" not in vars(layer)


def _memory(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage().data_ptr())


def _is_compiled(part: nn.Module) -> bool:
    """By `torch.compile`, which looks into the layers itself."""
    return getattr(part, "_compiled_call_impl", None) is not None or "_orig_mod" in part._modules


def _pack(layer: nn.Linear) -> bool:
    weight, bias = _held(layer)
    packed = packed_weight(weight, bias)
    if packed is not None:
        with torch.inference_mode(False):
            _become(layer, PackedLinear, bias=bias, weight=nn.Parameter(packed, weight.requires_grad))
    return packed is not None


def _become(layer: nn.Linear, cls: type[nn.Linear], **parameters: nn.Parameter | None) -> None:
    """The bias of a packed one comes first: of a module's first parameter others are made, for its dtype and
    place (`next(module.parameters()).new_zeros(...)`), and of a packed one that would be packed ones."""
    layer.__class__ = cls
    layer._parameters.clear()
    layer._parameters.update(parameters)
