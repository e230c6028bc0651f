"""The gRPC transport: GRPCInferenceService as tritonclient's compiled protocol has it, on the server's event loop."""

from serving.transports.grpc.server import listen

__all__ = ["listen"]
