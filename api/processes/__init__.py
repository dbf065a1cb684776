"""What runs beside the requests.

`builders` read data and build mixes under limits, `looks` looks at a file there, `workers` do queued jobs, `mix_jobs`
builds a queued mix under the same limits, and `webhooks` tell tenants of jobs that ended.
"""
