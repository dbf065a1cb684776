"""A run's folder: checkpoints, weights, report, and the machine it ran on."""
