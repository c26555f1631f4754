"""Algorithms that improve a policy: filtered behaviour cloning and reinforcement learning on flows."""
