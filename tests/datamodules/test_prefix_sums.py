"""Prefix sums of random bits."""

import pytest
import torch

from datamodules import PrefixSums
from rbp_lightning import UserError


def test_targets_are_the_running_parity_of_each_string() -> None:
    data = PrefixSums(num_train=20, num_val=5, num_test=5)
    data.setup("fit")
    for sizes in data.splits.values():
        for size, split in sizes.items():
            assert split["inputs"].shape == (len(split["size"]), 1, size)
            for inputs, targets in zip(split["inputs"][:, 0].tolist(), split["targets"].tolist(), strict=True):
                assert [inputs[: end + 1].count(1.0) % 2 for end in range(size)] == targets


def test_no_more_than_all_strings_of_a_length_can_be_drawn() -> None:
    data = PrefixSums(length=5, num_train=20, num_val=4, num_test=8)
    data.setup("fit")
    strings = torch.cat([sizes[5]["inputs"] for sizes in data.splits.values()])
    assert len(strings.unique(dim=0)) == 32
    with pytest.raises(UserError, match=r"32 strings.* ask for 33"):
        PrefixSums(length=5, num_train=21, num_val=4, num_test=8).setup("fit")


def test_bits_have_mean_one_half_and_are_independent() -> None:
    data = PrefixSums(test_lengths=[100], num_test=4000)
    data.setup("fit")
    bits = data.splits["test"][100]["inputs"][:, 0]
    covariance = bits.T @ bits / len(bits)
    assert bits.mean(0).abs().max() < 0.08
    assert (covariance - torch.eye(100)).abs().max() < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_lengths": []}, r"val_lengths=\[\] must be a list"),
        ({"test_lengths": [16, 0]}, "test_lengths=0 .*at least 1"),
        ({"test_lengths": [16, 16]}, r"test_lengths=\[16, 16\].*different"),
    ],
)
def test_lengths_are_checked_at_once(arguments, message) -> None:
    with pytest.raises(UserError, match=message):
        PrefixSums(**arguments)
