"""`make demo`: the whole main job on a real model and corpus.

`steps` are commands of the product in their order, each skipped when it is complete; `model` and `settings` say what
they run on, `checks` what must hold afterwards, and `report` writes the page.
"""
