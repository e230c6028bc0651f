"""The Open Inference Protocol (KServe v2): decodes requests and encodes replies, for all transports.

`tensors` has names, datatypes and shapes, `request` what a request asks for, `decode` and `encode` the HTTP body (JSON
with the binary tensor extension), `metadata` the descriptions of server and models, `status` the codes of errors.
https://github.com/kserve/open-inference-protocol
"""

from serving.v2.decode import Decoder, decode_request
from serving.v2.encode import encode_response
from serving.v2.request import InferRequest, RequestedOutput

__all__ = ["Decoder", "InferRequest", "RequestedOutput", "decode_request", "encode_response"]
