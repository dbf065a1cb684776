"""Evaluation: did the defence prevent broad misalignment, keep the task, and leave the model coherent?

`python -m trainer.evaluate KIND` runs one measurement (method.md, "Evaluation"). `judge` scores answers, whose numbers
`score_strings` reads; `behaviour`, `pairs` and `nll` need no judge; `metrics` has intervals; `gate` turns a figure into
an exit code.
"""
