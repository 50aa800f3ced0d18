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

for method in (fl.FedAvg(solver=solver), fl.FedProx(solver=solver, mu=0.1), fl.Scaffold(solver=solver)):
    run = fl.run(method, task, federation, rounds=20, seed=0)
    print(f"{method.card.title:10s} accuracy {run.summary['final']['global.accuracy']:.3f}")

print("report:", run.report("hello.html"))
