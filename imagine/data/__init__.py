"""Reading and writing robot datasets, and the windows a model is trained on."""
