"""Several processes do what one does: charges spread over ranks, training and sampling under torchrun."""

from __future__ import annotations

import pytest
import torch

import pfgm_fast as pf
from tests import forked


def test_charges_on_ranks_equal_one_process(tmp_path):
    """1, 2, 3 and 4 ranks, every hard case and operator: tests/ranks_field.py."""
    done = forked.run(4, "tests.ranks_field", tmp_path)
    assert done.returncode == 0, done.stderr[-6000:]


def test_without_a_process_group():
    with pytest.raises(pf.ArgumentError, match="torchrun"):
        pf.Charges(torch.zeros(3, 2)).shard()
