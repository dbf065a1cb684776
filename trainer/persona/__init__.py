"""Persona vectors (arXiv 2507.21509): extracted by contrastive system prompts, saved, and projected on.

`extract.extract` makes a `vectors.Vector` for a trait of `traits`; `project` screens a data set or an adapter with it.
"""
