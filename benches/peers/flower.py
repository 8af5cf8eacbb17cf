"""Flower's simulation engine on the bowl of `sim/benches/speed.rs`: `flower.py CLIENTS ROUNDS`.

Every client takes ten steps towards an optimum with noise of its own, on as many numbers as the bowl's model has, and
hands the result in; the server averages. There is no network, no verification, no pay and no fault in it.
"""

import logging
import resource
import sys
import time

import numpy as np
import flwr
from flwr.client import ClientApp, NumPyClient
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation

CLIENTS, ROUNDS = int(sys.argv[1]), int(sys.argv[2])
NUMBERS, STEPS, RATE = 1180, 10, 0.06
OPTIMUM = np.random.default_rng(0).normal(size=NUMBERS).astype(np.float32)


class Client(NumPyClient):
    def fit(self, parameters, config):
        values, rng = parameters[0].copy(), np.random.default_rng()
        for _ in range(STEPS):
            values -= RATE * (values - OPTIMUM + rng.uniform(-0.5, 0.5, NUMBERS).astype(np.float32))
        return [values], STEPS, {}

    def evaluate(self, parameters, config):
        return float(np.square(parameters[0] - OPTIMUM).mean()), 1, {}


def server(context):
    start = ndarrays_to_parameters([np.zeros(NUMBERS, dtype=np.float32)])
    strategy = FedAvg(fraction_fit=1.0, fraction_evaluate=0.0, min_fit_clients=CLIENTS,
                      min_available_clients=CLIENTS, initial_parameters=start)
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=ROUNDS))


logging.getLogger("flwr").setLevel(logging.WARNING)
begun = time.perf_counter()
run_simulation(
    server_app=ServerApp(server_fn=server),
    client_app=ClientApp(client_fn=lambda context: Client().to_client()),
    num_supernodes=CLIENTS,
    backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
)
took = time.perf_counter() - begun
own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
print(f"Flower {flwr.__version__}, {CLIENTS} clients: {ROUNDS} rounds in {took:.1f} s with its start, "
      f"{CLIENTS * ROUNDS / took:.1f} clients x rounds/s; {own:.0f} MiB, the largest of its processes {largest:.0f} MiB")
