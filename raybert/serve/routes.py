"""All routes that models answer. Which of them one answers is for its engine to say."""

from raybert.serve import openai, tei
from raybert.serve.calls import Route

ROUTES: dict[str, Route] = {**openai.ROUTES, **tei.ROUTES}
"""By path."""
