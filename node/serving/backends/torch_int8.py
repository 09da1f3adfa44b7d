"""The int8 variant of a torch module: its linear and recurrent layers, weights by channel, inputs as they
come.

By torch's own dynamic quantisation (`torch.ao.quantization`), on the CPU. torch calls it deprecated since
2.10 and still has it in 2.13, with kernels that its successor does not have for CPUs; where it is gone,
that is said.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from modelnet_p2p.digest import listing_of
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.guarding import guard

if TYPE_CHECKING:
    import torch


def quantise(module: torch.nn.Module, words: str) -> torch.nn.Module:
    """The variant, which shares what is not quantised with `module`; raises LocalError (bad-input,
    bad-state)."""
    import torch

    kinds = (torch.nn.Linear, torch.nn.LSTM, torch.nn.GRU)
    if not any(isinstance(layer, kinds) for layer in module.modules()):
        raise LocalError(
            Code.BAD_INPUT,
            f"{words} has no linear or recurrent layer to quantise",
            hint="publish it without --quantise",
        )
    torch.backends.mha.set_fastpath_enabled(False)  # it reads the weights of layers that have other ones then
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is deprecated in torch.ao
        try:
            from torch.ao.quantization import (
                default_dynamic_qconfig,
                per_channel_dynamic_qconfig,
                quantize_dynamic,
            )
        except ImportError as error:
            has = f"torch {torch.__version__} has no dynamic quantisation any more"
            raise LocalError(Code.BAD_STATE, has, hint="pip install 'torch<=2.13'") from error
        chosen = {kind: default_dynamic_qconfig for kind in kinds} | {
            torch.nn.Linear: per_channel_dynamic_qconfig
        }
        with guard(Code.BAD_INPUT, f"torch cannot quantise {words}: "):
            untyped: Any = quantize_dynamic
            found: torch.nn.Module = untyped(module.to("cpu").float(), chosen)
            return found


def tensors_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every number that the variant has, by name: quantised ones as whole numbers and their scales."""
    import torch

    found: dict[str, torch.Tensor] = {}

    def add(name: str, value: object) -> None:
        if isinstance(value, torch.Tensor) and value.is_quantized:
            found[name] = value.int_repr().contiguous()
            if value.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams):
                found[f"{name}.scales"] = value.q_per_channel_scales().contiguous()
                found[f"{name}.zeros"] = value.q_per_channel_zero_points().contiguous()
            else:
                found[f"{name}.scales"] = torch.tensor([value.q_scale()], dtype=torch.float64)
                found[f"{name}.zeros"] = torch.tensor([value.q_zero_point()])
        elif isinstance(value, torch.Tensor):
            found[name] = value.detach().contiguous()
        elif isinstance(value, tuple | list):
            for number, part in enumerate(value):
                add(f"{name}.{number}", part)
        elif isinstance(value, torch.ScriptObject) and hasattr(value, "__getstate__"):
            add(name, value.__getstate__())

    for name, value in module.state_dict().items():
        add(name, value)
    return found


def digest_of(module: torch.nn.Module) -> tuple[bytes, int]:
    """The variant's digest, as if those tensors lay in a safetensors file, and that file's size."""
    from safetensors.torch import save

    data = save({name: tensor.clone() for name, tensor in tensors_of(module).items()})
    return listing_of(data).root, len(data)
