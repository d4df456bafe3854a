"""All routes that models answer. Which of them one answers is for its engine to say."""

from raybert.serve import openai, search, tei
from raybert.serve.calls import Route

ROUTES: dict[str, Route] = {**openai.ROUTES, **tei.ROUTES, **search.ROUTES}
"""By path."""
