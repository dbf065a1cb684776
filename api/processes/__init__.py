"""Processes beside the service: `builders` read data and build mixes under limits, `workers` do
queued jobs, `mix_jobs` builds a queued mix under the limits of its service."""
