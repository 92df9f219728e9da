"""Copies batches to the device."""

import torch

from hfbsz.data.batches import Batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device; copied asynchronously to a GPU, unchanged on a CPU."""
    if device.type == "cpu":
        return batch
    inputs = {name: value.pin_memory().to(device, non_blocking=True) for name, value in batch.inputs.items()}
    labels = batch.labels.pin_memory().to(device, non_blocking=True)
    return Batch(inputs, labels, batch.targets, batch.tokens)
