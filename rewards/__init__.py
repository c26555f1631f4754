"""Who judges a dream. Knows ``imagine.types`` and nothing else of ours."""
