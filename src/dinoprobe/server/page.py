"""The OpenAPI document as one page that needs no network and no script, with a form to try it."""

from __future__ import annotations

from html import escape
from typing import Any

CONTENT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;"
    "color:#1a1a1a;background:#fff}h2{margin-top:2rem;font-size:1.1rem}code{background:#f2f2f2;"
    "padding:.1em .3em;border-radius:3px}table{border-collapse:collapse}td,th{text-align:left;"
    "padding:.2rem .8rem .2rem 0;vertical-align:top}form{background:#f2f2f2;padding:1rem}"
    "@media(prefers-color-scheme:dark){body{color:#eee;background:#161616}code,form{background:#2a2a2a}}"
)
_FORM = (
    '<form action="/predict" method="post" enctype="multipart/form-data">'
    '<label>Images: <input type="file" name="file" accept="image/*" multiple required></label> '
    "<button>Classify</button></form>"
)


def page(document: dict[str, Any]) -> str:
    """HTML of an OpenAPI document."""
    info = document["info"]
    title = f"{escape(info['title'])} {escape(info['version'])}"
    sections = [
        _operation(method, path, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1>"
        f'<p>For programs: <a href="/openapi.json">/openapi.json</a></p>{_FORM}'
        f"{''.join(sections)}</html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    head = f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
    text = f"<p>{escape(operation.get('description', ''))}</p>"
    return head + text + _parameters(operation) + _bodies(operation) + _answers(operation)


def _parameters(operation: dict[str, Any]) -> str:
    rows = [
        (f"{p['name']} ({p['in']})", p.get("description", ""), _range(p["schema"]))
        for p in operation.get("parameters", ())
    ]
    return _table("Parameters", rows)


def _range(schema: dict[str, Any]) -> str:
    kinds = [schema, *schema.get("anyOf", ())]
    found = {name: kind[name] for kind in kinds for name in ("minimum", "maximum") if name in kind}
    words = [f"{name} {value}" for name, value in found.items()]
    if "default" in schema:
        words.append(f"default {schema['default']}")
    return ", ".join(words)


def _bodies(operation: dict[str, Any]) -> str:
    content = operation.get("requestBody", {}).get("content", {})
    return _table("Body, one of", [(kind, "", "") for kind in content])


def _answers(operation: dict[str, Any]) -> str:
    answers = operation.get("responses", {})
    return _table(
        "Answers", [(code, told.get("description", ""), "") for code, told in answers.items()]
    )


def _table(title: str, rows: list[tuple[str, str, str]]) -> str:
    if not rows:
        return ""
    lines = "".join(
        f"<tr><th><code>{escape(name)}</code><td>{escape(text)}<td>{escape(more)}"
        for name, text, more in rows
    )
    return f"<details><summary>{title}</summary><table>{lines}</table></details>"
