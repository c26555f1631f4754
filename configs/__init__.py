"""The composition root: presets, the objects built from them, and the ``imagine`` command line."""
