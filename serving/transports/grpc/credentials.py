"""TLS of a gRPC server, whose certificate may change while it runs."""

from __future__ import annotations

from typing import Any

import grpc

from serving.security.tls import ServerTls


def server_credentials(tls: ServerTls) -> Any:
    """Credentials that follow the files: gRPC asks for them at each handshake."""

    def now() -> Any:
        pems = tls.pems
        return grpc.ssl_server_certificate_configuration([(pems.key, pems.cert)], pems.client_ca)

    return grpc.dynamic_ssl_server_credentials(now(), now, require_client_authentication=tls.pems.client_ca is not None)
