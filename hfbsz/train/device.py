"""The device: copies of batches, and its memory."""

import gc

import torch

from hfbsz.data.batches import Batch
from hfbsz.system import memory

_OUT_OF_MEMORY = (  # of the host's allocator, the driver and libraries
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device; copied asynchronously to a GPU, unchanged on a CPU."""
    if device.type == "cpu":
        return batch
    inputs = {name: value.pin_memory().to(device, non_blocking=True) for name, value in batch.inputs.items()}
    labels = batch.labels.pin_memory().to(device, non_blocking=True)
    reference = None if batch.reference is None else batch.reference.pin_memory().to(device, non_blocking=True)
    return Batch(inputs, labels, batch.targets, batch.tokens, reference)


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an exception says that the device or the host had no memory left."""
    if isinstance(problem, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(problem, RuntimeError) and any(text in str(problem) for text in _OUT_OF_MEMORY)


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU, keep the memory of freed tensors for those of the next step, as PyTorch does on a GPU."""
    if device.type == "cpu":
        memory.keep_freed_memory()


def free(device: torch.device) -> None:
    """Return memory that is not used to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reset_peak(device: torch.device) -> None:
    """Start the measurement of `peak_bytes` anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        memory.reset_peak()


def peak_bytes(device: torch.device) -> int:
    """Peak memory in bytes since `reset_peak`: of the GPU's allocator, or of the process on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else memory.peak_bytes()
