"""One module per ``imagine`` command: a frozen dataclass ``Args`` and ``run(args) -> dict``."""
