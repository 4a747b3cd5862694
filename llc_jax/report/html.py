"""The report of a run as one HTML file, which needs no other file and no network."""

import base64
import hashlib

import jinja2

from llc_jax.report.page import Page

# Parts of the page's script, in their order; each only uses those before it.
_SCRIPTS = (
    *("surface.js", "figure.js", "charts.js", "codes.js", "explorer.js", "images.js"),
    "tables.js",
)
_MAIN = "main.js"
_STYLE = "report.css"


def render(page: Page) -> str:
    """Returns the HTML of a report.

    All text is escaped, whatever a class or a run is called. The page's own policy allows
    nothing but its one script and its one style: it can load nothing, and no text of the run
    can be run.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("llc_jax.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    style = _source(environment, _STYLE)
    parts = "\n".join(_source(environment, name) for name in (*_SCRIPTS, _MAIN))
    script = f'"use strict";\n(() => {{\n{parts}}})();\n'
    template = environment.get_template("report.html")
    return template.render(
        page=page,
        style=style,
        script=script,
        style_hash=_policy_hash(style),
        script_hash=_policy_hash(script),
    )


def _source(environment: jinja2.Environment, name: str) -> str:
    """Returns a file of the templates as it is."""
    source, _, _ = environment.loader.get_source(environment, name)
    return source


def _policy_hash(text: str) -> str:
    """Returns how a content security policy names an inline script or style."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
