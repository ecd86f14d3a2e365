from collections import OrderedDict

import torch
from torch import nn

from trainer.host_copy import HostCopy


def test_a_copy_stays_as_it_was_while_training_goes_on() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters())
    schedule = {"values": [0.1, 0.2], "last": 3, "name": "cosine"}

    def step() -> None:
        network(torch.randn(2, 3, 8, 8)).square().sum().backward()
        optimizer.step()

    step()
    state = {"weights": network.state_dict(), "optimizers": [optimizer.state_dict()], "schedule": schedule}
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    moments = [value.clone() for value in optimizer.state_dict()["state"][0].values()]
    copied = HostCopy().of(state)
    step()
    schedule["values"][0] = 9.0

    assert isinstance(copied["weights"], OrderedDict)
    assert all(torch.equal(copied["weights"][name], tensor) for name, tensor in before.items())
    assert not torch.equal(before["0.weight"], network.state_dict()["0.weight"])
    found = copied["optimizers"][0]["state"][0].values()
    assert all(torch.equal(first, second) for first, second in zip(found, moments, strict=True))
    assert copied["optimizers"][0]["param_groups"][0]["lr"] == 1e-3
    assert copied["schedule"] == {"values": [0.1, 0.2], "last": 3, "name": "cosine"}
    assert copied["weights"]["0.weight"].stride() == network.state_dict()["0.weight"].stride()


def test_the_memory_is_taken_again_where_it_fits() -> None:
    copy = HostCopy()
    first = copy.of({"a": torch.ones(3), "b": torch.ones(2, 2)})
    second = copy.of({"a": torch.full((3,), 2.0), "b": torch.ones(5)})

    assert second["a"].data_ptr() == first["a"].data_ptr()
    assert second["a"].tolist() == [2.0] * 3
    assert second["b"].tolist() == [1.0] * 5


def test_two_names_of_one_tensor_are_copied_alike() -> None:
    shared = torch.ones(2)
    copied = HostCopy().of([shared, shared, shared[:1]])

    assert [tensor.tolist() for tensor in copied] == [[1.0, 1.0], [1.0, 1.0], [1.0]]
