"""Methods of the toy experiment that change how a fine-tune is trained."""

from trainer.experiments.toy.methods import Method

TRAINING_METHODS: tuple[Method, ...] = ()
