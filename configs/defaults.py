"""What commands and environments take where nothing is named; light, so that ``--help`` is."""

MODEL = "g1-table-tiny"
"""The shipped model."""
JUDGE = "judge-tiny"
"""The shipped judge."""
HORIZON = 8
"""Chunks per episode."""
ZOO_HORIZON = 3
"""The same where dream and simulator are compared: as far as a dream was trained to go on its own frames."""
