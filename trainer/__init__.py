"""Train on a mix in its order, with defences, and measure what the training did.

`python -m trainer.sft` is one run, read top to bottom in `sft.py`. `config` is what a run takes, `data` its rows,
`defenses` the regularisers, `loop` TRL's trainer, `runs` the run's folder; `generate` and `evaluate` measure a model,
`persona` and `monitor` read its hidden states, `organisms` makes misaligned adapters on purpose, `plans` leads from a
base model to a safeguarded fine-tune. `experiments` is research on the product. A
package imports only those after it in the contract in pyproject.toml.
"""
