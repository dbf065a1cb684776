"""The HTTP service: `python -m api --store DIR`.

In: a data set and a recipe. Out: a mix with its manifest, downloads, SQL over scored corpora, audits. `app` puts it
together, `routes` has one module for each resource, `uploads` reads what clients send, `tenancy` knows who may ask and
for how much, `jobs` does work that outlives a request, `processes` run beside the service, `settings` is everything an
operator can set. It loads neither torch nor transformers.
"""
