"""The order of samples: every one once an epoch, the same again from any step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terramind_plugin.errors import DataError
from terramind_plugin.pretrain.loading import ResumableOrder


def epochs(order, count):
    drawn = []
    for epoch in range(order.first_epoch, order.first_epoch + count):
        order.set_epoch(epoch)
        drawn += list(order)
    return drawn


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 3), st.integers(0, 5))
def test_an_epoch_shares_samples_among_processes(count, batch_size, replicas, seed):
    if count < batch_size * replicas:
        with pytest.raises(DataError, match="do not fill one step"):
            ResumableOrder(count, batch_size, seed, replicas=replicas)
        return
    drawn = []
    for rank in range(replicas):
        order = ResumableOrder(count, batch_size, seed, replicas=replicas, rank=rank)
        mine = list(order)
        assert len(mine) == len(order)
        drawn += [draw.number for draw in mine]
    assert len(set(drawn)) == len(drawn)
    assert len(drawn) == count // (batch_size * replicas) * batch_size * replicas


@given(st.integers(4, 30), st.integers(1, 4), st.integers(0, 40))
def test_it_goes_on_from_any_step(count, batch_size, start):
    whole = ResumableOrder(count, batch_size, 3)
    rest = ResumableOrder(count, batch_size, 3, *divmod(start, whole.steps))
    assert rest.steps == whole.steps
    everything = epochs(whole, start // whole.steps + 2)
    assert epochs(rest, 2) == everything[start * batch_size :]


def test_epochs_differ():
    order = ResumableOrder(30, 5, 0)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    assert [draw.number for draw in first] != [draw.number for draw in second]
    assert not {draw.seed for draw in first} & {draw.seed for draw in second}
    assert first[0].random().random() == next(iter(ResumableOrder(30, 5, 0))).random().random()
