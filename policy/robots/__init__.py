"""Robots a policy can move, each in its own folder."""
