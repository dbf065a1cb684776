"""Evaluation: did the defence prevent broad misalignment, keep the task, and leave the model coherent?

`python -m trainer.evaluate KIND` runs one measurement (method.md, "Evaluation").
"""
