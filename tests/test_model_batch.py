"Batches: picking sequences out of forward arguments."

import torch

from interpkit.model.batch import Batch


def test_arguments_that_serve_all_sequences_are_not_picked_from():
    amounts = torch.arange(3.0)
    table = torch.tensor([5.0, 6, 7])
    batch = Batch(args=(amounts, table), n=3, shared=frozenset([1]))
    picked = batch.take(torch.tensor([2, 0]))
    assert picked.args[0].tolist() == [2, 0]
    assert picked.args[1].tolist() == [5, 6, 7]
