"""A client of a running server's ``/v1`` endpoints, on the standard library alone."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

from sensai_serve.cli.samples import Sample
from sensai_serve.errors import InputError, RequestError, ServingError
from sensai_serve.input_spec import InputSpec
from sensai_serve.text_spec import TokenizerSpec


def _specs(model: Mapping[str, Any]) -> tuple[InputSpec, ...]:
    """What a model takes, of its entry in ``/v1/models``; servers of older versions name the shape of one input."""
    inputs = model.get("inputs") or [{"name": "input", "datatype": "FP32", "shape": model["shape"]}]
    return tuple(
        InputSpec(
            shape=tuple(entry["shape"]),
            name=entry["name"],
            dtype=entry["datatype"],
            maximum=tuple(entry.get("maximum", {}).values()),
            axes=tuple(entry.get("maximum", {})),
            vocabulary=entry.get("vocabulary"),
        )
        for entry in inputs
    )


def _tokenizer(model: Mapping[str, Any], specs: tuple[InputSpec, ...]) -> TokenizerSpec | None:
    """What a model makes of texts, of its entry in ``/v1/models``; None where it takes none."""
    said = model.get("text")
    if said is None:
        return None
    ids = next((spec.name for spec in specs if spec.name in said["made"]), specs[0].name)
    return TokenizerSpec(ids, said["maximum"], name=said["name"], too_long=said["too_long"])


class Endpoint:
    """A connection to one server, kept open between requests."""

    def __init__(self, url: str, *, token: str | None = None, timeout_s: float = 60.0) -> None:
        """Take the URL apart; nothing is sent yet.

        Args:
            url: the URL of the server.
            token: shown to it with every request.
            timeout_s: seconds that it may take to answer.

        Raises:
            InputError: `url` is not the URL of a server.
        """
        self._url = url
        self._shown = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            parts = urlsplit(url)
            kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}[parts.scheme]
            self._connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
        except (KeyError, ValueError, http.client.InvalidURL):
            raise InputError(f"{url!r} is not the URL of a server, expected http://HOST:PORT") from None
        self._path = parts.path.rstrip("/")

    def inputs(self, model: str | None) -> tuple[tuple[InputSpec, ...], TokenizerSpec | None]:
        """Return what a model takes, and what it makes of texts; of the only model where `model` is None.

        Raises:
            RequestError: there is no such model, or there are several and none is named.
            ServingError: the server cannot be reached, or it is another kind of server.
        """
        served = {entry["name"]: entry for entry in self._ask("GET", "/v1/models")}
        if model is None and len(served) == 1:
            model = next(iter(served))
        if model is None or model not in served:
            raise RequestError(f"{self._url} serves {', '.join(served)}, expected --model with one of them")
        specs = _specs(served[model])
        return specs, _tokenizer(served[model], specs)

    def predict(self, sample: Sample, model: str | None) -> dict[str, Any]:
        """Classify one input. Raises as `inputs`, and RequestError for what the server does not accept."""
        path = "/v1/predict" + (f"?{urlencode({'model': model})}" if model else "")
        if isinstance(sample.raw, str):
            body, kind = json.dumps({"text": sample.raw}).encode(), "application/json"
        elif isinstance(sample.raw, bytes):
            body, kind = sample.raw, "application/octet-stream"
        else:
            raw = sample.raw
            given = {name: a.tolist() for name, a in raw.items()} if isinstance(raw, Mapping) else raw.tolist()
            body, kind = json.dumps({"inputs": given}).encode(), "application/json"
        prediction: dict[str, Any] = self._ask("POST", path, body, kind)
        return prediction

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _ask(self, method: str, path: str, body: bytes | None = None, kind: str = "") -> Any:
        try:
            self._connection.request(
                method, self._path + path, body, self._shown | ({"Content-Type": kind} if kind else {})
            )
            response = self._connection.getresponse()
            content = json.loads(response.read())
        except (OSError, http.client.HTTPException) as error:
            raise ServingError(f"{self._url} cannot be reached: {error}") from None
        except ValueError:
            raise ServingError(f"{self._url} does not answer as a sensai server") from None
        if response.status != http.client.OK:
            message = content.get("error", response.reason) if isinstance(content, dict) else response.reason
            raise (RequestError if response.status < 500 else ServingError)(message)
        return content
