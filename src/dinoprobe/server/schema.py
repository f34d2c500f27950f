"""The bodies of requests and answers, for the OpenAPI document."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import Response


class ScoreBody(BaseModel):
    """One class with its probability."""

    label: str
    probability: float


class FailureBody(BaseModel):
    """Why an image could not be used."""

    kind: str
    reason: str


class PredictionBody(BaseModel):
    """One image."""

    key: str = Field(description="The file's name, or the image's place in the request.")
    label: str | None = Field(description="None where it abstains, and after a failure.")
    probability: float | None
    top: list[ScoreBody]
    labels: list[str] | None = Field(description="The prediction set.")
    abstained: bool
    novelty: float | None
    novel: bool = Field(description="Unlike all training images.")
    failure: FailureBody | None = None


class PredictBody(BaseModel):
    """The answer of /predict."""

    schema_: str = Field(alias="schema")
    model: str
    predictions: list[PredictionBody]
    failed: int


class EmbeddingBody(BaseModel):
    """The features of one image."""

    key: str
    features: list[float] | None
    failure: FailureBody | None = None


class EmbedBody(BaseModel):
    """The answer of /embed."""

    schema_: str = Field(alias="schema")
    model: str
    fingerprint: str
    embeddings: list[EmbeddingBody]
    failed: int


class ProblemBody(BaseModel):
    """Why there is no answer."""

    schema_: str = Field(alias="schema")
    error: str = Field(description="What was found, what was expected, what to do.")
    reason: str = Field(description="One word to count by.")
    retry_after_s: int | None
    request_id: str


class StateBody(BaseModel):
    """Whether the service lives, and is ready."""

    status: str


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemBody, "description": text}
    for status, text in {
        400: "A head that is no HTTP",
        401: "No token, or another one",
        404: "Nothing is here",
        405: "Another method",
        408: "The body came too slowly",
        413: "Too many bytes, pixels or images",
        415: "Not a type of body, or not an image, that is read here",
        422: "Not readable, or a parameter out of its range",
        503: "Too many at a time, or it ends; Retry-After says when to ask again",
    }.items()
}
_IMAGES = {"type": "array", "items": {"type": "string", "format": "byte"}, "minItems": 1}
_FILE = {"type": "string", "format": "binary", "description": "The bytes of one file."}
UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": _FILE},
            "application/octet-stream": {"schema": _FILE},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "description": "One file or several, whatever the fields are called.",
                    "properties": {
                        "file": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "minItems": 1,
                        }
                    },
                    "required": ["file"],
                }
            },
            "application/json": {
                "schema": {
                    "description": '{"image": BASE64} or {"images": [BASE64, ...]}',
                    "oneOf": [
                        {
                            "type": "object",
                            "properties": {"image": {"type": "string", "format": "byte"}},
                            "required": ["image"],
                            "additionalProperties": False,
                        },
                        {
                            "type": "object",
                            "properties": {"images": _IMAGES},
                            "required": ["images"],
                            "additionalProperties": False,
                        },
                    ],
                }
            },
        },
    }
}

_SIZE = {"type": "integer", "minimum": 1}
_TENSOR = {
    "oneOf": [
        {
            "type": "object",
            "required": ["name", "shape", "datatype", "data"],
            "properties": {"name": {"const": "image"}, **of_kind},
        }
        for of_kind in (
            {
                "datatype": {"const": "BYTES"},
                "shape": {"type": "array", "items": _SIZE, "minItems": 1, "maxItems": 2},
                "data": _IMAGES,
            },
            {
                "datatype": {"const": "UINT8"},
                "shape": {"type": "array", "items": _SIZE, "minItems": 3, "maxItems": 4},
                "data": {"type": "array", "description": "Numbers from 0 to 255, flat or nested."},
            },
        )
    ]
}
_OUTPUT = {
    "oneOf": [
        {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"const": name},
                "parameters": {
                    "type": "object",
                    "properties": {"binary_data": {"type": "boolean"}, "classification": count},
                },
            },
        }
        for name, count in (
            ("probabilities", {"type": "integer", "minimum": 0}),
            ("label", {"const": 0}),
        )
    ]
}
INFER: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "description": "One tensor 'image': files in base64, or pixels.",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "inputs": {
                            "type": "array",
                            "items": _TENSOR,
                            "minItems": 1,
                            "maxItems": 1,
                        },
                        "outputs": {"type": "array", "items": _OUTPUT, "maxItems": 2},
                        "parameters": {
                            "type": "object",
                            "properties": {"binary_data_output": {"type": "boolean"}},
                        },
                    },
                }
            },
            "application/octet-stream": {
                "schema": {
                    "type": "string",
                    "format": "binary",
                    "description": "The same with the tensor's bytes behind the JSON, whose length "
                    "the header Inference-Header-Content-Length says.",
                }
            },
        },
    }
}


def as_json(value: object) -> Response:
    """The value as a JSON answer. Raises ValueError for a number that is not finite."""
    return Response(json.dumps(value, allow_nan=False), media_type="application/json")
