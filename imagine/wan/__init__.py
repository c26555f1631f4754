"""Wan and DreamZero checkpoints."""
