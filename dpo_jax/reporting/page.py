"""Pages: templates of this folder, filled in; what data says stays text."""

from __future__ import annotations

from importlib import resources
from typing import Any

from dpo_jax.reporting import numbers


def page(template: str, **values: Any) -> str:
    """The HTML text of a template. The same values give the same bytes."""
    import jinja2

    folder = resources.files("dpo_jax.reporting")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = numbers.plain
    return environment.get_template(template).render(**values)
