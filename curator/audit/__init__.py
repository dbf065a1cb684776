"""Audits: how far a user's rows look like those that misaligned models like (docs/method.md, "Audits"; ours).

`risk` and `verdict` are pure; `run` scores a user's rows by the very scorers of a pool's gap and judges them.
"""
