"""GI-Unstale against NumPy: inversion with a known answer, rounds with a straggler, the test of guesses, the fall."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from worked import START, N, Softmax, X, Y, batches, gradient, run, same, trained

import fedloom as fl
from fedloom.keyed import generator
from fedloom.message import Message
from fedloom.methods.systems.giunstale import GiUnstaleState
from fedloom.methods.systems.inversion import Guess, first_guess, inverted, trained_on, unique
from fedloom.replies import Replies, Reply

SGD = fl.SGD(lr=0.2, epochs=1, batch_size=3)
WORLD = fl.World(step_seconds=1.0)
"""Clients 0 to 3 need 3, 1, 2 and 1 seconds."""
METHOD = fl.GiUnstale(cohort=4, period=1.5, solver=SGD, search=7, rate=0.3, keep=0.5, a=1.0, samples=0.5)
MODEL = fl.Model(Softmax(), example=(torch.zeros(1, 3, dtype=torch.float64),))


def soft_gradient(w, x, y):
    z = x @ w[:9].reshape(3, 3).T + w[9:]
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return np.concatenate([((p - y).T @ x).ravel(), (p - y).sum(0)]) / len(x)


def softmax(z):
    return np.exp(z) / np.exp(z).sum(1, keepdims=True)


def test_one_sample_is_recovered():
    """A linear model and one step: the rows of the weight's gradient over the bias's are the sample."""
    x, y = X[0][:1], Y[0][:1]
    w = torch.from_numpy(START)
    delta = torch.from_numpy(-0.2 * gradient(START, 0, [0]))
    np.testing.assert_allclose((delta[:9].view(3, 3) / delta[9:, None]).numpy(), np.repeat(x, 3, 0), atol=1e-12)
    start = first_guess(MODEL, w, 1, torch.Generator().manual_seed(0))
    start = replace(start, y=9.0 * delta[None, 9:].sign())  # only the label's bias rises
    guess = inverted(MODEL, w, delta, start, lr=0.2, steps=1, keep=1.0, search=300, rate=0.1)
    np.testing.assert_allclose(guess.x.numpy(), x, atol=1e-3)
    assert guess.y.argmax().item() == y[0]


def test_training_on_a_guess_is_gradient_descent_with_soft_labels():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    w = START
    for _ in range(3):
        w = w - 0.4 * soft_gradient(w, x, softmax(y))
    guess = Guess(torch.from_numpy(x), torch.from_numpy(y))
    same(trained_on(MODEL, torch.from_numpy(START), guess, 0.4, 3).detach(), w)


def test_the_search_comes_nearer_and_leaves_its_start_alone():
    w, delta = torch.from_numpy(START), torch.from_numpy(trained(START, 0, 0, SGD) - START)
    start = first_guess(MODEL, w, 4, torch.Generator().manual_seed(1))
    kept = start.x.clone()
    gaps = []
    for search in (0, 20, 200):
        guess = inverted(MODEL, w, delta, start, 0.2, 3, 1.0, search, 0.1)
        gaps.append(float((trained_on(MODEL, w, guess, 0.2, 3).detach() - w - delta).abs().sum()))
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]
    assert torch.equal(start.x, kept)


def test_the_search_looks_at_the_largest_entries_alone():
    w, delta = torch.from_numpy(START), torch.from_numpy(trained(START, 0, 0, SGD) - START)
    small = delta.abs().argsort()
    start = first_guess(MODEL, w, 4, torch.Generator().manual_seed(1))
    a, b, c = (
        inverted(MODEL, w, delta.index_fill(0, where, 0.0), start, 0.2, 3, 0.5, 5, 0.1)
        for where in (small[:0], small[:6], small[:7])
    )
    assert torch.equal(a.x, b.x)
    assert not torch.equal(a.x, c.x)


def test_long_jobs_are_repeated_in_fewer_longer_steps():
    assert METHOD.program(7) == (pytest.approx(0.2), 3)
    lr, steps = replace(METHOD, unroll=2).program(7)
    assert (lr * steps, steps) == (pytest.approx(0.6), 2)


def test_rounds_with_stragglers():
    """After the fall nothing is inverted: what resembles a fresh update counts less the staler it is, the rest as it
    is."""
    got = resumed(GiUnstaleState(params=torch.from_numpy(START), left=-10), rounds=8)
    x, kinds, sent, busy = START, set(), {}, {}
    for r in range(8):
        for i in set(range(4)) - set(busy):
            busy[i] = 1.5 * r + len(batches(i, r, SGD))
            sent[i] = (r, x)
        arrived = {i: trained(sent[i][1], i, sent[i][0], SGD) - sent[i][1] for i in busy if busy[i] <= 1.5 * (r + 1)}
        fresh = [delta for i, delta in arrived.items() if sent[i][0] == r]
        update = np.zeros(12)
        for i, delta in arrived.items():
            tau = r - sent[i][0]
            s = 1 / (1 + tau) if tau and not apart(delta, fresh) else 1.0
            kinds.add((tau > 0, s < 1))
            update += N[i] / N[list(arrived)].sum() * s * delta
            del busy[i]
        x = x + update
    same(got.params, x)
    assert kinds == {(False, False), (True, False), (True, True)}
    assert got.guesses == {}


def apart(delta, fresh) -> bool:
    """Further from the nearest fresh update than these are from theirs, on average."""
    if len(fresh) < 2:
        return True
    cos = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in fresh] for a in (delta, *fresh)]
    among = [max(c for j, c in enumerate(row) if j != i) for i, row in enumerate(cos[1:])]
    return 1 - max(cos[0]) > 1 - np.mean(among)


def resumed(state: GiUnstaleState, rounds: int, method: fl.GiUnstale = METHOD) -> GiUnstaleState:
    """A run from a state of ours."""

    class Started(fl.GiUnstale):
        def start(self, clients, before=None):
            return state

    started = Started(**{f: getattr(method, f) for f in method.__dataclass_fields__})
    return run(started, rounds=rounds, world=WORLD).state


def test_a_stale_update_is_inverted_where_it_began_and_repeated_from_the_current_model():
    """Client 1 is fresh every second; client 0 comes every third, and its second guess starts from its first."""
    method = replace(METHOD, period=1.0)
    x, guess, last, left = [START], None, None, None
    for r in range(6):
        update = N[1] * (trained(x[r], 1, r, SGD) - x[r])
        n = N[1]
        if r in (2, 5):
            base, delta = x[r - 2], trained(x[r - 2], 0, r - 2, SGD) - x[r - 2]
            if guess is not None:
                left = r if np.abs(again(base, guess) - delta).sum() >= np.abs(last - delta).sum() else None
            w = torch.from_numpy(base)
            begin = guess or first_guess(MODEL, w, 4, generator(0, "guess", r, 0))
            guess, last = inverted(MODEL, w, torch.from_numpy(delta), begin, *method.program(7), 0.5, 7, 0.3), delta
            update, n = update + N[0] * again(x[r], guess), n + N[0]
        x.append(x[r] + update / n)
        got = run(method, rounds=r + 1, ids=[0, 1], world=WORLD).state
        same(got.params, x[-1])
    assert guess is not None
    assert got.left == left
    same(got.last[0], last)


def again(w, guess: Guess):
    """What three full steps on a guess add to w."""
    v = w
    for _ in range(3):
        v = v - 0.2 * soft_gradient(v, guess.x.numpy(), softmax(guess.y.numpy()))
    return v - w


def test_the_fall_of_gamma():
    """gamma goes from 1 to 0 within half of the four rounds before: in the fifth round 1, then 1/2, then 0."""
    method, base = replace(METHOD, period=3.0, window=0.5), torch.from_numpy(START)
    w = trained(START, 0, 0, SGD) - START
    for round, gamma in ((4, 1.0), (5, 0.5), (6, 0.0)):
        state = GiUnstaleState(base, round, left=4)
        clients = Stub([Reply(0, 7, 0, 3, 0.0, 0.0, Message(params=base), Message(delta=torch.from_numpy(w)))])
        got = method.round(state, clients)
        hat = again(START, got.guesses[0]) if gamma else 0.0
        same(got.params, START + gamma * hat + (1 - gamma) * w)
        assert (0 in got.guesses) == (gamma > 0)


class Stub:
    """A server's view in which these replies arrive."""

    model, now = MODEL, 0.0

    def __init__(self, replies) -> None:
        self.replies = replies

    def idle(self):
        return []

    def sample(self, k, ids):
        return []

    def send(self, *args, **kwargs):
        return []

    def receive(self, until):
        return Replies(tuple(self.replies))

    def rng(self, purpose):
        return torch.Generator().manual_seed(0)


def test_unique_is_further_away_than_the_fresh_are_from_one_another():
    fresh = [torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 0.3, 0.0]), torch.tensor([0.9, -0.3, 0.0])]
    assert unique(torch.tensor([0.0, 0.0, 5.0]), fresh)
    assert not unique(torch.tensor([7.0, 0.1, 0.0]), fresh)
    assert unique(fresh[0], fresh[:1])  # nothing to compare with
    turned = [torch.tensor([math.cos(a), math.sin(a)]) for a in (0.0, 0.1, 1.0)]  # 0.1, 0.1 and 0.9 from the nearest
    assert not unique(torch.tensor([math.cos(1.4), math.sin(1.4)]), turned)  # 0.4, the mean of cosines is that of 0.52
    assert unique(torch.tensor([math.cos(1.6), math.sin(1.6)]), turned)  # 0.6


def reply(delta, base) -> Reply:
    return Reply(0, 7, 0, 3, 0.0, 0.0, Message(params=base), Message(delta=delta))


def test_a_guess_that_tells_no_more_than_the_last_update_starts_the_fall():
    base, guess = (
        torch.from_numpy(START),
        first_guess(MODEL, torch.from_numpy(START), 4, torch.Generator().manual_seed(2)),
    )
    told = METHOD.repeated(MODEL, base, guess, 7)
    for off, last, left in ((1e-6, 2e-6, None), (2e-6, 1e-6, 5)):
        got = Replies((reply(told + off, base),))
        state = GiUnstaleState(2 * base, 5, guesses={0: guess}, last={0: told + off + last})  # the model has moved on
        assert METHOD.left(state, got, MODEL) == left
        assert METHOD.left(replace(state, left=2), got, MODEL) == 2


def test_with_nobody_stale_it_is_fedavg():
    stale = run(replace(METHOD, period=10.0), rounds=3, world=WORLD)
    same(stale.params, run(fl.FedAvg(cohort=4, solver=SGD), rounds=3, world=WORLD).params.numpy())


def test_nobody_there_is_a_legal_round():
    got = run(METHOD, rounds=2, world=fl.World(present=1e-12))
    same(got.params, START, 0)
    assert got.state.round == 2


def test_inputs_that_cannot_move_are_refused():
    tokens = fl.Model(Softmax(), example=(torch.zeros(1, 3, dtype=torch.int64),))
    with pytest.raises(fl.FedloomError, match="moves inputs"):
        first_guess(tokens, torch.from_numpy(START), 2, torch.Generator())


@pytest.mark.parametrize(
    "wrong",
    [
        {"solver": fl.SGD(momentum=0.9)},
        {"solver": fl.SGD(clip=1.0)},
        {"samples": 0.0},
        {"keep": 1.5},
        {"period": 0.0},
        {"unroll": 0},
        {"search": -1},
    ],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(fl.FedloomError, match="GiUnstale"):
        fl.GiUnstale(**wrong)
