from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from slideloom.training.ema import RunningMean


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1))


def change(module: nn.Module, seed: int) -> None:
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for value in module.state_dict().values():
            value.copy_(torch.randn_like(value) if value.is_floating_point() else value + 1)


def test_the_mean_is_the_recursion_on_weights_and_statistics_and_copies_counters() -> None:
    module = network()
    mean = RunningMean(module, 0.9)
    expected = {name: value.double().clone() for name, value in module.state_dict().items()}
    for step in range(100):
        change(module, step)
        mean.update()
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    assert mean.updates == 100
    for name, value in mean.weights.items():
        if name.endswith("num_batches_tracked"):
            assert value == 100
        else:
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_what_does_not_change_stays_to_the_bit() -> None:
    module = network()
    before = copy.deepcopy(module.state_dict())
    mean = RunningMean(module, 0.5)
    for _ in range(20):
        mean.update()
    assert all(torch.equal(mean.weights[name], value) for name, value in before.items())


def test_the_network_has_the_means_weights_for_a_while_and_then_its_own() -> None:
    module = network()
    mean = RunningMean(module, 0.5)
    change(module, 1)
    mean.update()
    own = copy.deepcopy(module.state_dict())
    with pytest.raises(KeyError), mean.in_place():
        assert all(torch.equal(value, mean.weights[name]) for name, value in module.state_dict().items())
        assert not torch.equal(module.state_dict()["0.weight"], own["0.weight"])
        raise KeyError
    assert all(torch.equal(value, own[name]) for name, value in module.state_dict().items())


def test_a_saved_mean_goes_on_as_if_nothing_had_happened() -> None:
    module = network()
    through, first = RunningMean(module, 0.99), RunningMean(module, 0.99)
    for step in range(3):
        change(module, step)
        through.update()
        first.update()
    second = RunningMean(network(1), 0.99)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second._module = module
    change(module, 7)
    through.update()
    second.update()
    assert all(torch.equal(value, second.weights[name]) for name, value in through.weights.items())
