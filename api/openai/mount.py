"""Adding the OpenAI form to the application."""

from fastapi import FastAPI

from api.openai import file_routes
from api.openai.errors import OpenAIErrors


def mount(app: FastAPI) -> None:
    """Add the routes, and the middleware that puts their errors into OpenAI's shape."""
    app.include_router(file_routes.router)
    app.add_middleware(OpenAIErrors)
