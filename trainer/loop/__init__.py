"""TRL's trainer with the order check and the terms of the defences.

`fit.load` gives the model with its adapter, `fit.fit` trains it; `trainer.BallastTrainer` adds the terms to TRL's loss,
`callbacks` write metrics and stop on request, `processes.Team` lets one process do what must be done once.
"""
