"""Routes of the HTTP service, one module a resource."""
