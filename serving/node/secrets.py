"""What a node reads from files to know gateways by, read anew when the files change."""

from __future__ import annotations

import hmac
from pathlib import Path

from sensai_serve.errors import InputError
from serving.runtime.endpoint import Security
from serving.security.tls import ServerTls


class GatewayTokens:
    """The tokens that gateways may show: any line of a file."""

    def __init__(self, security: Security) -> None:
        """Read the file.

        Raises:
            InputError: it cannot be read, or a line of it is no token.
        """
        self._security = security
        self._expected: tuple[bytes, ...] = ()
        self.load()

    @property
    def files(self) -> tuple[Path, ...]:
        """The file that is read; none where no token is asked for."""
        return () if self._security.token_file is None else (self._security.token_file,)

    def load(self) -> None:
        """Read the file; the tokens before stay in force where it is not valid. Raises as the constructor."""
        self._expected = tuple(f"Bearer {token}".encode() for token in self._security.tokens())

    def changed(self) -> None:
        """Nothing is kept that depends on the file: open streams of a gateway go on."""

    def let_in(self, authorization: bytes) -> bool:
        """Whether a call with this metadata is answered, in a time that does not depend on the tokens."""
        if not self.files:
            return True
        same = [hmac.compare_digest(authorization, expected) for expected in self._expected]
        return any(same)


def open_tls(security: Security) -> ServerTls | None:
    """The node's certificate; None where it has none.

    Raises:
        InputError: a file cannot be read, the key is not the certificate's, it is not valid today, or gateways'
            certificates are to be checked without TLS.
    """
    if security.cert is None or security.key is None:
        if security.ca is not None:
            raise InputError("clients' certificates can only be checked over TLS, expected a certificate and a key too")
        return None
    return ServerTls(security.cert, security.key, security.ca)
