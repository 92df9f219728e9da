"""The machine and software that a run trains with, as recorded in machine.json."""

import platform
import subprocess
from typing import Any

import torch
import transformers
from accelerate import Accelerator

import hfbsz
from hfbsz.train.fsdp import is_sharded


def machine_of(accelerator: Accelerator, model: Any) -> dict[str, Any]:
    """Versions, device, parallelism and git commit: everything outside the recipe that results may depend on."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "hfbsz": hfbsz.__version__,
        **software_and_device(accelerator.device),
        "python": platform.python_version(),
        "processes": accelerator.num_processes,
        "parallel": "FSDP2" if is_sharded(model) else "DDP" if accelerator.num_processes > 1 else None,
        "threads": torch.get_num_threads(),
        "commit": commit.stdout.strip() or None,
    }


def software_and_device(device: torch.device) -> dict[str, str]:
    """The versions of torch and Transformers, and the name of a device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"torch": torch.__version__, "transformers": transformers.__version__, "device": name}
