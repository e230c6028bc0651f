"""TLS of a server: its certificate, and the authority that its clients' certificates must be signed by."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from sensai_serve.errors import InputError
from serving.runtime.endpoint import read, warn_of_others


@dataclass(frozen=True)
class Pems:
    """The contents of the files, in PEM."""

    cert: bytes
    """The server's certificate and those between it and its authority."""
    key: bytes
    client_ca: bytes | None
    """The authority of clients' certificates; None where clients need none."""


class ServerTls:
    """A server's side of TLS. A connection gets the certificate that is in force when it is made."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        """Read the files.

        Args:
            cert: the server's certificate chain.
            key: its private key.
            client_ca: authorities; a client must have a certificate that one of them has signed.

        Raises:
            InputError: a file cannot be read, the key does not belong to the certificate, or that is not valid today.
        """
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self.pems: Pems
        self._now: ssl.SSLContext
        self.load()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read."""
        return tuple(file for file in (self._cert, self._key, self._client_ca) if file is not None)

    def load(self) -> None:
        """Read the files; the certificate before stays in force where they are not valid. Raises as the constructor."""
        warn_of_others(self._key)
        pems = Pems(read(self._cert), read(self._key), None if self._client_ca is None else read(self._client_ca))
        context = self._make()
        _try_out(context, self._cert)
        if self._client_ca is not None:
            try:
                context.load_verify_locations(self._client_ca)
            except ssl.SSLError:
                raise InputError(f"{self._client_ca} holds no certificates, expected PEM") from None
            context.verify_mode = ssl.CERT_REQUIRED
        self.pems, self._now = pems, context

    def changed(self) -> None:
        """Nothing is kept that depends on the files."""

    def context(self) -> ssl.SSLContext:
        """A context for a listener; each handshake uses the files as they were read last."""
        context = self._make()
        context.verify_mode = self._now.verify_mode

        def choose(connection: ssl.SSLObject, name: str | None, before: ssl.SSLContext) -> None:
            connection.context = self._now

        context.sni_callback = choose  # called whether or not the client names a server
        return context

    def _make(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.options |= ssl.OP_NO_RENEGOTIATION
        if self._client_ca is not None:
            # A resumed session would pass over the client's certificate, whose authority may be another by then.
            context.options |= ssl.OP_NO_TICKET
            context.num_tickets = 0
        try:
            context.load_cert_chain(self._cert, self._key, password="")
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise InputError(f"{self._key} is not the private key of {self._cert}") from None
            message = (
                f"{self._cert} and {self._key} cannot be used, expected a certificate and its unencrypted key in PEM"
            )
            raise InputError(message) from None
        except OSError as error:
            raise InputError(f"{self._cert} or {self._key} cannot be read: {error.strerror}") from None
        return context


def _try_out(server: ssl.SSLContext, cert: Path) -> None:
    """Shake hands with ourselves, as a client that trusts this very certificate.

    Raises:
        InputError: such a client would refuse, say because the certificate has expired.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(cert)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)
    done = [False, False]
    while not all(done):
        for at, end in enumerate(ends):
            try:
                end.do_handshake()
                done[at] = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLCertVerificationError as error:
                raise InputError(f"{cert} is not valid for clients today: {error.verify_message}") from None
            except ssl.SSLError as error:
                raise InputError(f"{cert} cannot be used: {error.reason}") from None
