"""Model FLOP/s utilization: what training achieves of the peak of its devices (Chowdhery et al. 2022, appendix B).

It counts the operations that the model needs, not those that are carried out: recomputed activations and padding do not
raise it. A peak is that of dense matrix products in the precision of the run.
"""

import time
from typing import Any

import torch
from torch import nn

from hfbsz.train.first_token import weights_of_first_token

# dense TFLOP/s by data sheet (NVIDIA), for bfloat16 with float32 sums and for float32 without TF32; first match counts
_PEAKS = (
    ("H100 PCIe", {"bf16": 756.0, "fp32": 51.0}),
    ("H100", {"bf16": 989.4, "fp32": 66.9}),
    ("H200", {"bf16": 989.4, "fp32": 66.9}),
    ("A100", {"bf16": 312.0, "fp32": 19.5}),
    ("L40S", {"bf16": 362.0, "fp32": 91.6}),
    ("RTX 4090", {"bf16": 165.2, "fp32": 82.6}),
)
_OTHERS = ("MIG", "NVL", "Laptop", "Max-Q")  # parts of a GPU, or other versions of one
_SIZE, _SECONDS = 1024, 0.2  # of the matrices that measure a CPU, and how long
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # in the configuration
_DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}


def flops_per_token(model: nn.Module, length: float, learned: float = 1.0) -> float | None:
    """Floating-point operations of a training step per input token.

    2 for each weight of a matrix product in the forward pass, 2 in the backward pass for the gradient of its input, and
    2 for the gradient of the weight if it is trained; and 12 · layers · width · length for attention over rows of
    `length` tokens, the upper half of the scores included. Embeddings are lookups, unless they are the output head too.
    The head, and what is computed for the first token of a row only, is needed for `learned` of the tokens: those with
    a label. None for a mixture of experts, of which a token uses a part.
    """
    if any(getattr(getattr(model, "config", None), name, None) for name in _EXPERTS):
        return None
    head = getattr(model, "get_output_embeddings", lambda: None)()
    embeddings = {id(one.weight) for one in model.modules() if isinstance(one, nn.Embedding)}
    embeddings -= {id(head.weight)} if head is not None else set()
    first = {id(one) for one in weights_of_first_token(model)}
    at_labels = first | (_of_classifier_head(model) if head is None else {id(head.weight)})
    products = sum(
        (4 + 2 * one.requires_grad) * one.numel() * (learned if id(one) in at_labels else 1)
        for one in model.parameters()
        if one.ndim >= 2 and id(one) not in embeddings
    )
    layers, width = _layers_and_width(getattr(model, "config", None))
    return products + 12 * (layers - (1 - learned) * bool(first)) * width * length


def _of_classifier_head(model: Any) -> set[int]:
    """The weights of a classifier's head, the pooler included, by id()."""
    base = getattr(model, "base_model", model)
    pooler = getattr(base, "pooler", None)
    pooling = {id(one) for one in pooler.parameters()} if isinstance(pooler, nn.Module) else set()
    return {id(one) for one in model.parameters()} - {id(one) for one in base.parameters()} | pooling


def _layers_and_width(config: Any) -> tuple[int, int]:
    """The number of layers, and the width of their attention; 0, 0 if the configuration does not tell."""
    layers, heads, hidden = (
        getattr(config, name, None) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size")
    )
    size = getattr(config, "head_dim", None) or (hidden // heads if hidden and heads else None)
    return (layers, heads * size) if layers and heads and size else (0, 0)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """The peak of a device in FLOP/s in a precision (fp32, bf16, fp64): of a GPU from a table, of a CPU by measurement
    with torch's threads of this process; None if it is not known."""
    if device.type == "cpu":
        return _measured(_DTYPES[precision])
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if any(part in name for part in _OTHERS):
        return None
    peaks = next((peaks for part, peaks in _PEAKS if part in name), {})
    return peaks[precision] * 1e12 if precision in peaks else None


def _measured(dtype: torch.dtype) -> float:
    """The speed of products of two square matrices on the CPU in FLOP/s: the best of those that fit into 0.2 s."""
    one, other = (torch.full((_SIZE, _SIZE), 0.5, dtype=dtype) for _ in range(2))
    result = torch.mm(one, other)
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while (started := time.perf_counter()) < end:
        torch.mm(one, other, out=result)
        best = min(best, time.perf_counter() - started)
    return 2 * _SIZE**3 / best
