"""Answers of a model to questions, from a model folder or from a server.

`questions` reads them, `generators.LocalGenerator` and `ServerGenerator` answer, `endpoint` says which model is meant,
`command` is `python -m trainer.evaluate generate`.
"""
