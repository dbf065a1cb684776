"""What runs beside the requests: `builders` read data and build mixes under limits, `workers` do queued jobs, and
`webhooks` tell tenants of jobs that ended."""
