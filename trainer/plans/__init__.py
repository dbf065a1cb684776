"""The two things that most users do, each as a plan of the product's own commands.

`provision`: once for each base model, everything that a gap needs: misaligned adapters with benign twins, a scored
pool, a calibration card, one archive. `safeguard`: for each customer's set, a mix, a training, an evaluation with a
gate. `admission` holds the conditions of a misaligned adapter, `judged` the gate. `steps` runs a plan, `commands` one
command. A step that is complete is skipped by its command, so the same plan
goes on where it was stopped.
"""
