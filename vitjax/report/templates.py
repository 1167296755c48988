"""The HTML templates of a report, in files beside this one."""

import pathlib
from typing import Any


def render(name: str, **context: Any) -> str:
    """Fill a template; every text that is not marked safe is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(context)
