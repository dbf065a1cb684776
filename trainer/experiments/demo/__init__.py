"""`make demo`: `try`, then `provision` and `safeguard` on a real model and corpus.

`full/` and `short/` hold the settings of both plans, `model` the model's one conversion, `checks` what must hold
afterwards, and `ending` what the last screen says, all of it read from the files that the plans left.
"""
