"""Trackers besides W&B, behind one interface: Trackio and TensorBoard."""
