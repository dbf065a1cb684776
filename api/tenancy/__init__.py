"""Who may ask, and for how much: keys, tenants with their policy, quotas by the clock, and turns between tenants.

In: a request's token and what it asks for. Out: a tenant, or the refusal. `auth` finds the tenant of a key (`keys`),
`tenants` its policy and bounds, `quotas` counts what it uses (`rates` by the clock), `turns` gives places in turn.
"""
