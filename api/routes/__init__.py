"""Routes of the HTTP service, one module for each resource; each has a `router` that `api.app` includes."""
