"""A tiny causal LM in which emergent misalignment really happens, and the experiment on it (docs/organism.md)."""
