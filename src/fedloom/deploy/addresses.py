"""The coordinator's addresses as a table: its routes, what requests are held against, and its OpenAPI document.

All three are made from `ADDRESSES`, so that none says what another does not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedloom.errors import MessageError

Schema = Mapping[str, Any]

# ---------------------------------------------------------------- what sites say

Count = Annotated[int, Field(ge=0, lt=1 << 40)]
Kind = Literal["float16", "bfloat16", "float32", "float64", "int64", "int32", "uint8", "bool"]
Shape = Annotated[list[Count], Field(max_length=8)]
JobId = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Name = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Said(BaseModel):
    """JSON of a site: these fields, of these types, and no others."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Declared(Said):
    """What a site says of its data."""

    sizes: list[Count] = Field(min_length=1, description="samples of each of its clients")
    fields: dict[str, tuple[Shape, Kind]] = Field(min_length=1, description="name -> shape of a sample, type")
    classes: int = Field(ge=0, le=1 << 20, description="0: none; everybody's networks have as many outputs as most")
    sha256: str = Field(max_length=128, description="over all samples")


class Sent(Said):
    """A job came to these bytes, which are here."""

    job: JobId
    body: Name = Field(description="SHA-256 of the bytes")


def read_said(kind: type[Said], body: bytes) -> dict[str, Any]:
    """JSON of one of these kinds, as it was sent.

    Raises:
        MessageError: something else; says where.
    """
    try:
        return kind.model_validate_json(body).model_dump(mode="json")
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise MessageError(f"not what is said here: {where}: {first['msg']}") from None


# ---------------------------------------------------------------- addresses

WAIT = {"type": "number", "minimum": 0, "maximum": 86400, "default": 0, "description": "seconds to wait for news"}
NUMBER = {"type": "integer", "minimum": 0, "maximum": 1 << 50}
JOB = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
NAME = {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "SHA-256 of the bytes"}
BYTES = "application/octet-stream"


def _object(**fields: str) -> Schema:
    """An object that has these fields, of these JSON types ("a|b": one or the other), and maybe more."""
    kinds = {name: {"type": kind.split("|") if "|" in kind else kind} for name, kind in fields.items()}
    return {"type": "object", "required": list(fields), "properties": kinds}


_OFFER = _object(recipe="string", terms="object", public="string", versions="object")
_PLAN = _object(offer="object", held="object", hash="string")
_HEADER = _object(
    id="string", number="integer", client="integer", program="string", payload="string", key="array", memory="string",
    version="integer", began="number", judge="string", samples="integer",
)  # fmt: skip
_TAKEN = {
    "type": "object",
    "required": ["taken"],
    "properties": {"taken": {"enum": ["yes", "late", "refused"]}, "why": {"type": "string"}},
}
_STATUS = _object(
    method="string", plan="string|null", round="integer", rounds="integer", figures="object", state="string",
    uptime="number", bytes="object", sites="object",
)  # fmt: skip
REFUSAL = {
    "type": "object",
    "required": ["why"],
    "properties": {
        "why": {"type": "string"},
        "again": {"type": "boolean", "description": "the same request may do the next time"},
        "missing": {"type": "boolean", "description": "the bytes of a reply are not here"},
    },
}
REASONS = {
    400: "damaged on the way",
    403: "not allowed",
    404: "not there",
    405: "not done here",
    408: "too slow",
    409: "not now",
    412: "another plan",
    413: "too large",
    422: "malformed",
    500: "not in order here",
    503: "busy",
    507: "no room",
}
"""What a request is refused for, by the status of its answer."""


@dataclass(frozen=True)
class Address:
    """One method of one path.

    Attributes:
        does: name of the function of `Service` that answers.
        query: name -> JSON schema of a number or a text; one without a default must be there.
        says: what the body is: JSON of this kind, bytes, or nothing.
        answers: status -> JSON schema of what is answered, a media type, or None for nothing.
        refuses: with which statuses, beside those that every address has.
        look: for whoever has a certificate of this federation, and for tools that know nothing of its checksums.
    """

    method: str
    path: str
    does: str
    about: str
    query: Mapping[str, Schema] = field(default_factory=dict[str, Schema])
    says: type[Said] | Literal["bytes"] | None = None
    answers: Mapping[int, Schema | str | None] = field(default_factory=dict[int, Schema | str | None])
    refuses: tuple[int, ...] = ()
    look: bool = False

    @property
    def refusals(self) -> tuple[int, ...]:
        always = (403, 408, 500) if self.look else (400, 403, 408, 409, 412, 422, 500)
        return tuple(sorted({*always, *self.refuses}))

    @property
    def named(self) -> list[str]:
        """Parameters in the path."""
        return re.findall(r"{(\w+)}", self.path)


ADDRESSES = (
    Address("GET", "/v1/offer", "get_offer", "what is to be run, and with whom", answers={200: _OFFER}),
    Address(
        "POST", "/v1/hello", "hello", "a site declares its data: sizes, shapes, a hash", says=Declared,
        answers={200: _object(sites="integer", of="integer")}, refuses=(413, 507),
    ),
    Address(
        "GET", "/v1/plan", "get_plan", "the plan, once every site has declared its data", {"wait": WAIT},
        answers={200: _PLAN, 204: None},
    ),
    Address(
        "GET", "/v1/jobs", "next_job", "the site's next job; 410: the run has ended. The wait is its heartbeat",
        {"wait": WAIT}, answers={200: _HEADER, 204: None, 410: _object(ended="object")},
    ),
    Address(
        "GET", "/v1/blobs/{name}", "get_blob", "bytes of a payload or an answer, by range",
        answers={200: BYTES, 206: BYTES, 416: "text/plain"}, refuses=(404,),
    ),
    Address(
        "PUT", "/v1/blobs/{name}", "put_blob", "a piece of a reply; answers how much of it is here",
        {"offset": NUMBER, "size": {**NUMBER, "minimum": 1}}, says="bytes",
        answers={200: _object(received="integer")}, refuses=(413, 503, 507),
    ),
    Address(
        "POST", "/v1/replies", "reply", "this job came to these bytes; the answer means: stop sending", says=Sent,
        answers={200: _TAKEN}, refuses=(413, 503, 507),
    ),
    Address(
        "POST", "/v1/questions", "question", "a question in mid-job to the server's last state",
        {"job": JOB, "number": NUMBER}, says="bytes", answers={200: _object(answer="string")}, refuses=(413, 503, 507),
    ),
    Address("POST", "/v1/bye", "bye", "the site has heard that the run ended", answers={200: {"type": "object"}}),
    Address("GET", "/v1/status", "status", "how the run stands", answers={200: _STATUS}, look=True),
    Address("GET", "/healthz", "health", "it lives", answers={200: "text/plain"}, look=True),
    Address("GET", "/metrics", "metrics", "figures for Prometheus", answers={200: "text/plain"}, look=True),
    Address("GET", "/openapi.json", "openapi", "this document", answers={200: _object(paths="object")}, look=True),
)  # fmt: skip


def read_query(address: Address, given: Mapping[str, list[str]]) -> dict[str, Any]:
    """What a request asks, by name.

    Args:
        given: name -> all values the query has for it; names the address does not know do not matter.

    Raises:
        MessageError: one is missing, is there twice, or is no such value.
    """
    return {name: _read(name, schema, given.get(name, [])) for name, schema in address.query.items()}


def _read(name: str, schema: Schema, given: list[str]) -> Any:
    if not given and "default" in schema:
        return schema["default"]
    wrong = MessageError(f"{name}={', '.join(given)[:80]!r} is not {_worded(schema)}")
    if len(given) != 1:
        raise wrong
    text = given[0]
    if schema["type"] == "string":
        if not re.fullmatch(schema["pattern"].strip("^$"), text):
            raise wrong
        return text
    form, kind = (r"\d{1,16}", int) if schema["type"] == "integer" else (r"\d{1,16}(\.\d+)?(e-\d+)?", float)
    if not re.fullmatch(form, text, re.ASCII):
        raise wrong
    number = kind(text)
    if not schema["minimum"] <= number <= schema["maximum"]:
        raise wrong
    return number


def _worded(schema: Schema) -> str:
    if schema["type"] == "string":
        return f"of the form {schema['pattern']}"
    kind = "a whole number" if schema["type"] == "integer" else "a number"
    return f"{kind} from {schema['minimum']} to {schema['maximum']}, once"


# ---------------------------------------------------------------- the document

_ABOUT = """Every request comes over mutual TLS; the certificate says who it is from. A site names itself in
`fedloom-site` and, once there is one, the plan it goes by in `fedloom-plan`. It sends checksums of the body
(`fedloom-sum`) and of all else (`fedloom-head`); a request that does not match them is damaged, and may come again."""


def document(version: str) -> dict[str, Any]:
    """The addresses in OpenAPI 3.1."""
    paths: dict[str, dict[str, Any]] = {}
    for address in ADDRESSES:
        paths.setdefault(address.path, {})[address.method.lower()] = _operation(address)
    return {
        "openapi": "3.1.0",
        "info": {"title": "A Fedloom coordinator", "version": version, "description": _ABOUT.replace("\n", " ")},
        "paths": paths,
        "components": {"schemas": {"Refusal": REFUSAL}},
    }


def _operation(address: Address) -> dict[str, Any]:
    named = [{"name": name, "in": "path", "required": True, "schema": NAME} for name in address.named]
    asked = [
        {"name": name, "in": "query", "required": "default" not in schema, "schema": dict(schema)}
        for name, schema in address.query.items()
    ]
    refusal = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}
    answers = {str(status): _answer(status, what) for status, what in address.answers.items()}
    answers |= {str(status): {"description": REASONS[status], "content": refusal} for status in address.refusals}
    made: dict[str, Any] = {
        "operationId": address.does,
        "summary": address.about,
        "parameters": named + asked,
        "responses": dict(sorted(answers.items())),
    }
    if address.says is not None:
        made["requestBody"] = {"required": True, "content": _body(address.says)}
    return made


def _answer(status: int, what: Schema | str | None) -> dict[str, Any]:
    about = {204: "nothing yet", 206: "a part", 410: "the run has ended", 416: "there is no such part"}
    made: dict[str, Any] = {"description": about.get(status, "done")}
    if what is not None:
        made["content"] = {what: {}} if isinstance(what, str) else {"application/json": {"schema": what}}
    return made


def _body(says: type[Said] | Literal["bytes"]) -> dict[str, Any]:
    if says == "bytes":
        return {BYTES: {"schema": {"type": "string", "format": "binary"}}}
    return {"application/json": {"schema": says.model_json_schema()}}
