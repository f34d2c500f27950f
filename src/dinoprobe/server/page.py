"""The OpenAPI document as one page that needs no network and no script, with a form to try it."""

from __future__ import annotations

from html import escape
from typing import Any

CONTENT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;"
    "color:#1a1a1a;background:#fff}h2{margin-top:2rem;font-size:1.1rem}code{background:#f2f2f2;"
    "padding:.1em .3em;border-radius:3px}table{border-collapse:collapse}td,th{text-align:left;"
    "padding:.2rem .8rem .2rem 0;vertical-align:top}form,pre{background:#f2f2f2;padding:1rem}"
    "pre{overflow-x:auto;padding:.5rem 1rem}"
    "@media(prefers-color-scheme:dark){body{color:#eee;background:#161616}code,form,pre{background:#2a2a2a}a{color:#8ab4f8}}"
)
_FORM = (
    '<form action="/predict" method="post" enctype="multipart/form-data">'
    '<label>Images: <input type="file" name="file" accept="image/*" multiple required></label> '
    "<button>Classify</button></form>"
)


_INFER = (
    """(printf '{{"inputs": [{{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["'\n"""
    """ base64 photo.jpg | tr -d '\\n'; printf '"]}}]}}') |\n"""
    """curl --data-binary @- -H 'Content-Type: application/json' """
    """{address}/v2/models/{model}/infer"""
)
_EXAMPLES = {
    "/predict": (
        "curl -F file=@photo.jpg {address}/predict",
        "curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' '{address}/predict?top_k=2'",
    ),
    "/embed": ("curl -F file=@photo.jpg {address}/embed",),
    "/v2/models/{model}/infer": (_INFER,),
}
_CLASSES_SHOWN = 20


def page(document: dict[str, Any], served: dict[str, Any], address: str) -> str:
    """HTML of an OpenAPI document; `served` is what /info says, `address` where it was asked."""
    info = document["info"]
    title = f"{escape(info['title'])} {escape(info['version'])}"
    names = {"address": address.rstrip("/"), "model": served["model"]}
    sections = [
        _operation(method, path, operation, names)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1>{_served(served)}{_FORM}"
        f'<p>For programs: <a href="/openapi.json">/openapi.json</a></p>'
        f"{''.join(sections)}{_errors(document)}</html>"
    )


def _served(served: dict[str, Any]) -> str:
    classes = [escape(str(name)) for name in served["classes"]]
    shown = ", ".join(classes[:_CLASSES_SHOWN])
    more = len(classes) - _CLASSES_SHOWN
    rest = f" and {more} more, listed at <a href='/info'>/info</a>" if more > 0 else ""
    model, encoder = escape(str(served["model"])), escape(str(served["encoder"]))
    return (
        f"<p>Classifies images: model <code>{model}</code>, encoder <code>{encoder}</code>, "
        f"{len(classes)} classes: {shown}{rest}.</p>"
    )


def _errors(document: dict[str, Any]) -> str:
    """What every path may answer, once."""
    told = document["paths"]["/predict"]["post"]["responses"]
    rows = [(code, told[code]["description"], "") for code in told if code != "200"]
    text = "<h2>Errors of all paths</h2><p>JSON with <code>error</code>, a sentence.</p>"
    return text + _table("Statuses", rows, is_open=True)


def _operation(method: str, path: str, operation: dict[str, Any], names: dict[str, str]) -> str:
    head = f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
    text = f"<p>{escape(operation.get('description', ''))}</p>"
    examples = "".join(
        f"<pre>{escape(example.format(**names))}</pre>" for example in _EXAMPLES.get(path, ())
    )
    return head + text + examples + _parameters(operation) + _bodies(operation)


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
    rows = [(kind, told["schema"].get("description", ""), "") for kind, told in content.items()]
    return _table("Body, one of", rows)


def _table(title: str, rows: list[tuple[str, str, str]], *, is_open: bool = False) -> str:
    if not rows:
        return ""
    lines = "".join(
        f"<tr><th><code>{escape(name)}</code><td>{escape(text)}<td>{escape(more)}"
        for name, text, more in rows
    )
    state = " open" if is_open else ""
    return f"<details{state}><summary>{title}</summary><table>{lines}</table></details>"
