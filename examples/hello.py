"""A network and data of your own, three methods, one report: python examples/hello.py"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import fedloom as fl


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


digits = load_digits()
x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
y = torch.tensor(digits.target)

federation = fl.Federation.from_arrays(
    x[:1500], y[:1500], clients=30, partition=fl.Dirichlet(alpha=0.3), test=(x[1500:], y[1500:])
)
task = fl.Classification(model=network)
solver = fl.SGD(lr=0.1, epochs=5, batch_size=16)

methods = [fl.FedAvg(solver=solver), fl.FedProx(solver=solver, mu=0.1), fl.Scaffold(solver=solver)]
done = fl.compare(methods, task, federation, rounds=20, seeds=2)
print(done)
print("report:", done.report("hello.html"))
