"""The HTML templates and scripts of a report."""

from importlib import resources
from typing import Any


def read_text(name: str) -> str:
    """A file beside this one."""
    return resources.files("vitjax.report").joinpath(name).read_text("utf-8")


def render(name: str, **context: Any) -> str:
    """Fill a template; every text that is not marked safe is escaped."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.from_string(read_text(name)).render(context)
