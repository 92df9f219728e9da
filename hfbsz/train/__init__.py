"""The work on the device: model, optimizer, task, loop, checkpoints; one process or many."""
