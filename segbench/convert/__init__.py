"""Checkpoints of other code bases as folders that stock transformers classes load: one module per origin."""
