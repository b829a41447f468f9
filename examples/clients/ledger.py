"""Calls the example tonic-ledger: any gRPC client will do, this one is grpcio's.

    ledger.py ADDRESS transfer KEY FROM TO AMOUNT
    ledger.py ADDRESS count

It needs the packages grpcio and grpcio-tools.
"""

import json
import sys
from pathlib import Path

import grpc

sys.path.append(str(Path(__file__).resolve().parent.parent / "proto"))
protos, services = grpc.protos_and_services("ledger.proto")

# Tries again while the ledger can't be reached or is still at work on this key. The key is the same
# in every try, because it was made before the first.
SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "ledger.v1.Ledger", "method": "Transfer"}],
            "timeout": "30s",
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "ABORTED"],
            },
        }
    ]
}


def transfer(ledger, key, from_account, to_account, amount):
    request = protos.TransferRequest(
        from_account=from_account, to_account=to_account, amount=int(amount)
    )
    reply, call = ledger.Transfer.with_call(request, metadata=[("idempotency-key", key)])
    replayed = "idempotent-replayed" in dict(call.initial_metadata())
    return f"{reply.transfer_id}{' (replayed)' if replayed else ''}"


def count(ledger):
    return ledger.Count(protos.CountRequest()).count


def main(address, call, *arguments):
    options = [("grpc.service_config", json.dumps(SERVICE_CONFIG))]
    with grpc.insecure_channel(address, options=options) as channel:
        ledger = services.LedgerStub(channel)
        try:
            print({"transfer": transfer, "count": count}[call](ledger, *arguments))
        except grpc.RpcError as error:
            print(f"{error.code().name}: {error.details()}")
            sys.exit(1)


if __name__ == "__main__":
    if (len(sys.argv), *sys.argv[2:3]) not in [(7, "transfer"), (3, "count")]:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    main(*sys.argv[1:])
