"""Methods of the toy experiment that change the rows of a fine-tune."""

from trainer.experiments.toy.methods import Method

DATA_METHODS: tuple[Method, ...] = ()
