"""A client of a secured kvd cluster with nothing of ours but the contract: grpcio and proto/*.proto.

python_client.py PROTO_DIR HOST:PORT CA CERT KEY
"""

import importlib
import os
import sys
import tempfile

import grpc
from grpc_tools import protoc


def contract(proto_dir):
    """The modules that protoc makes of kv.proto."""
    out = tempfile.mkdtemp()
    files = [os.path.join(proto_dir, "kv.proto")]
    args = ["protoc", f"-I{proto_dir}", f"--python_out={out}", f"--grpc_python_out={out}"]
    assert protoc.main(args + files) == 0
    sys.path.insert(0, out)
    return importlib.import_module("kv_pb2"), importlib.import_module("kv_pb2_grpc")


def main():
    proto_dir, address, ca, cert, key = sys.argv[1:]
    kv, services = contract(proto_dir)
    read = lambda path: open(path, "rb").read()
    secured = grpc.ssl_channel_credentials(read(ca), read(key), read(cert))
    with grpc.secure_channel(address, secured) as channel:
        client = services.KvStub(channel)
        wait = {"timeout": 30}

        # Put and get, byte for byte.
        value = bytes(range(256)) * 40
        client.Put(kv.PutRequest(key=b"py", value=value), **wait)
        got = client.Get(kv.GetRequest(key=b"py"), **wait)
        assert [it.value for it in got.siblings] == [value]

        # A put with the context replaces, one without it is a sibling.
        client.Put(kv.PutRequest(key=b"py", value=b"second", context=got.context), **wait)
        client.Put(kv.PutRequest(key=b"py", value=b"beside"), **wait)
        got = client.Get(kv.GetRequest(key=b"py"), **wait)
        assert sorted(it.value for it in got.siblings) == [b"beside", b"second"], got

        # What was seen together is replaced together, and deleted.
        client.Put(kv.PutRequest(key=b"py", value=b"merged", context=got.context), **wait)
        got = client.Get(kv.GetRequest(key=b"py"), **wait)
        assert [it.value for it in got.siblings] == [b"merged"]
        client.Delete(kv.DeleteRequest(key=b"py", context=got.context), **wait)
        got = client.Get(kv.GetRequest(key=b"py"), **wait)
        assert not got.siblings

        # Errors come as status codes with words, and with the typed detail in the trailer.
        try:
            client.Put(kv.PutRequest(key=b"", value=b"x"), **wait)
            raise AssertionError("an empty key was taken")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
            trailer = dict(error.trailing_metadata())
            assert b"kvd.v1.ErrorDetail" in trailer["grpc-status-details-bin"]

    # In the clear the port says why not.
    with grpc.insecure_channel(address) as channel:
        try:
            services.KvStub(channel).Get(kv.GetRequest(key=b"py"), timeout=2)
            raise AssertionError("served in the clear")
        except grpc.RpcError as error:
            # It tries again until its time is over, and logs the words of each farewell.
            refused = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED]
            assert error.code() in refused, error
    print("put get siblings delete errors: ok")


main()
