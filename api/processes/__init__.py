"""Processes beside the service: `builders` read data and build mixes under limits, `workers` do queued jobs."""
