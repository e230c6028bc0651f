"""gRPC with ModelInfer answered by a library that leaves less to Python; every other call is left to grpcio.

``sensai serve --listen grpc-native=ADDRESS``. pygrpc-native (https://github.com/pygrpc/pygrpc-native) speaks HTTP/2 and
gRPC on threads of its own, outside the interpreter's lock, and hands calls over as bytes. It has no TLS and bounds no
connections; docs/operating.md says what that means.
"""

from serving.transports.grpc_native.server import listen

__all__ = ["listen"]
