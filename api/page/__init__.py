"""The page at `/`: what the API serves, to look at in a browser.

In: a visitor's cookie, a query string or a form. Out: HTML rendered here from the same functions that answer the API,
so that every view has its JSON twin; plots are SVG drawn from aggregates that DuckDB makes. Begin at `frame` (how every
view is rendered, and the headers it has) and `session` (who looks). `router` holds the routes.
"""

from fastapi import APIRouter

from api.page import corpora, jobs, mixes, reports, rows, sign_in, statements, static

router = APIRouter(include_in_schema=False)
for module in (static, sign_in, corpora, rows, mixes, statements, jobs, reports):
    router.include_router(module.router)

__all__ = ["router"]
