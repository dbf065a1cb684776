"""Every defence on one narrow set, side by side: broad misalignment prevented, narrow behaviour kept, benign task
learnt, coherent, and at what cost.

`python -m trainer.experiments.compare` runs a grid of methods, ratios and seeds, resumable, and writes the table.
"""
