"""Templates of the pages, with the style and the script that they inline."""

from typing import Any

import jinja2
import markupsafe

_LOADER = jinja2.PackageLoader("qalign_jax.reporting", ".")


def render(template: str, **values: Any) -> markupsafe.Markup:
    """A page, or a part of one, from its template; what it shows of `values` is escaped.

    A template inlines a style or a script by its file's name: `{{ inlined("page.css") }}`.
    """
    text = _environment().get_template(template).render(**values)
    # a file's name that is no UTF-8 is shown by its bytes
    return markupsafe.Markup(text.encode(errors="backslashreplace").decode())


def macros(template: str) -> Any:
    """The macros of a template, as functions that return Markup."""
    return _environment().get_template(template).module


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=_LOADER,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def inlined(name: str) -> markupsafe.Markup:
        return markupsafe.Markup(_LOADER.get_source(environment, name)[0])

    environment.globals["inlined"] = inlined
    environment.filters |= {"percent": percent, "signed": signed, "whole": whole}
    return environment


def percent(value: float | None) -> str:
    """A figure with one digit, or a dash where there is none."""
    return "–" if value is None else f"{value:.1f}".replace("-", "−")


def signed(value: float | None) -> str:
    """A difference with its sign and one digit, or a dash."""
    return "–" if value is None else f"{value:+.1f}".replace("-", "−")


def whole(value: float | None) -> str:
    """A count in groups of three digits, or a dash."""
    return "–" if value is None else f"{value:,.0f}"
