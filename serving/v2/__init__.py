"""The Open Inference Protocol (KServe v2): requests and replies as bytes and as what the gateway takes and gives.

Knows no transport. Shapes, names and datatypes are in `tensors`, what a request asks for in `request`, the HTTP body
(JSON with the binary tensor extension) in `decode` and `encode`, what the server says about itself in `metadata`.
https://github.com/kserve/open-inference-protocol
"""

from serving.v2.decode import Decoder, decode_request
from serving.v2.encode import encode_response
from serving.v2.request import InferRequest, RequestedOutput

__all__ = ["Decoder", "InferRequest", "RequestedOutput", "decode_request", "encode_response"]
