"""The service in the form of OpenAI's fine-tuning API, so that a script changes its `base_url` and nothing else.

Files come in (`/v1/files`), jobs mix safe rows into them under the tenant's policy and recipe (`/v1/fine_tuning/jobs`),
and the mix comes out as a result file or is sent on to an upstream of the same form (`openai_mode`). A thin layer:
files are checked by the product's reader, jobs are those of `api.jobs`, mixes those of `curator.mix`. What is kept lies
under `openai/<tenant>/` in the store. `mount` adds it to the application; docs/openai.md describes it.
"""

from api.openai.mount import mount

__all__ = ["mount"]
