"""Calls ledger.v1.Ledger/Transfer the way the scenario says, and prints what came of it as JSON.

    transfer.py ADDRESS SCENARIO KEY
"""

import json
import sys
import threading

import grpc

PROTO = "ledger.proto"  # found on sys.path
protos, services = grpc.protos_and_services(PROTO)

# What docs/guides/tonic.md tells clients to use.
RETRY = {
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

HEDGE = {
    "methodConfig": [
        {
            "name": [{"service": "ledger.v1.Ledger", "method": "Transfer"}],
            "timeout": "30s",
            "hedgingPolicy": {
                "maxAttempts": 3,
                "hedgingDelay": "0.05s",
                "nonFatalStatusCodes": ["UNAVAILABLE", "ABORTED"],
            },
        }
    ]
}


def channel(address, config=None):
    options = []
    if config is not None:
        options.append(("grpc.service_config", json.dumps(config)))
    return grpc.insecure_channel(address, options=options)


def request():
    return protos.TransferRequest(from_account="alice", to_account="bob", amount=100)


def transfer(stub, key, **options):
    """One call: the same key in whatever the channel makes of it."""
    try:
        reply, call = stub.Transfer.with_call(
            request(), metadata=[("idempotency-key", key)], **options
        )
        metadata = dict(call.initial_metadata())
        return {
            "code": "OK",
            "transfer_id": reply.transfer_id,
            "replayed": "idempotent-replayed" in metadata,
        }
    except grpc.RpcError as error:
        trailing = dict(error.trailing_metadata() or ())
        return {
            "code": error.code().name,
            "details": error.details(),
            "replayed": "idempotent-replayed" in trailing,
            "pushback": trailing.get("grpc-retry-pushback-ms"),
            "status_details": trailing.get("grpc-status-details-bin", b"").hex(),
        }


def plain(address, key):
    with channel(address) as plain:
        return [transfer(services.LedgerStub(plain), key)]


def configured(config):
    def run(address, key):
        with channel(address, config) as retrying:
            return [transfer(services.LedgerStub(retrying), key)]

    return run


def by_hand(address, key):
    """Hedging without a channel that knows how: three calls at once, and the first answer counts."""
    answers, threads = [], []
    with channel(address) as plain:
        stub = services.LedgerStub(plain)
        for _ in range(3):
            thread = threading.Thread(target=lambda: answers.append(transfer(stub, key)))
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()
    return answers


def given_up(address, key):
    with channel(address) as plain:
        return [transfer(services.LedgerStub(plain), key, timeout=0.3)]


SCENARIOS = {
    "plain": plain,
    "retry": configured(RETRY),
    "hedge": configured(HEDGE),
    "hedge-by-hand": by_hand,
    "given-up": given_up,
}

if __name__ == "__main__":
    _, address, scenario, key = sys.argv
    print(json.dumps(SCENARIOS[scenario](address, key)))
