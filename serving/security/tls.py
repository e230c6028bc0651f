"""TLS of a server and of a gateway: certificates, authorities, and what is wrong with them."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensai_serve.errors import InputError
from serving.runtime.endpoint import Security, read, warn_of_others


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
        self.expires: float
        """When the certificate, or one between it and its authority, expires: seconds since 1970."""
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
        expires = _try_out_server(context, self._cert)
        if self._client_ca is not None:
            trust(context, self._client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        self.pems, self.expires, self._now = pems, expires, context

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
        load_pair(context, self._cert, self._key)
        return context


def client_context(security: Security) -> ssl.SSLContext:
    """A gateway's side of TLS, with the files as they are now.

    Raises:
        InputError: a file cannot be read, holds no certificate, the key does not belong to the certificate, or that is
            not valid today.
    """
    context = ssl.create_default_context()
    if security.ca is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts no authority of the system
        trust(context, security.ca)
    if security.cert is not None and security.key is not None:
        load_pair(context, security.cert, security.key)
        _try_out_client(security.cert, security.key)
    return context


def trust(context: ssl.SSLContext, ca: Path) -> None:
    """Have a context trust the authorities in a file.

    Raises:
        InputError: it cannot be read, or holds no certificates.
    """
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError:
        raise InputError(f"{ca} holds no certificates, expected PEM") from None
    except OSError as error:
        raise InputError(f"{ca} cannot be read: {error.strerror}") from None


def load_pair(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    """Have a context use a certificate.

    Raises:
        InputError: a file cannot be read, or the key does not belong to the certificate.
    """
    try:
        context.load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InputError(f"{key} is not the private key of {cert}") from None
        message = f"{cert} and {key} cannot be used, expected a certificate and its unencrypted key in PEM"
        raise InputError(message) from None
    except OSError as error:
        raise InputError(f"{cert} or {key} cannot be read: {error.strerror}") from None


def _try_out_server(server: ssl.SSLContext, cert: Path) -> float:
    """Shake hands with ourselves, as a client that trusts this very certificate; raises as `_shake_hands`.

    Returns:
        When the first certificate of the file expires: seconds since 1970.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(cert)
    shown = _shake_hands(client, server, f"{cert} is not valid for clients today")
    return min(ssl.cert_time_to_seconds(str(each["notAfter"])) for each in (shown, *client.get_ca_certs()))


def _try_out_client(cert: Path, key: Path) -> None:
    """Shake hands with ourselves, as a server that trusts this very certificate; raises as `_shake_hands`."""
    client, server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE  # only this side's certificate is tried out
    for context in (client, server):
        load_pair(context, cert, key)
    server.verify_mode = ssl.CERT_REQUIRED
    server.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    server.load_verify_locations(cert)
    _shake_hands(client, server, f"{cert} is not valid for servers today")


def _shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, refused: str) -> dict[str, Any]:
    """Have two contexts shake hands in memory.

    Args:
        client: one side.
        server: the other side.
        refused: what is said where one side refuses the other's certificate.

    Returns:
        The server's certificate, as `ssl` describes it; empty where the client does not look at it.

    Raises:
        InputError: they do not come to terms, say because a certificate has expired.
    """
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
                raise InputError(f"{refused}: {error.verify_message}") from None
            except ssl.SSLError as error:
                raise InputError(f"{refused}: {error.reason}") from None
    return dict(ends[0].getpeercert() or {})
