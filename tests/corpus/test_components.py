import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from biomedlm_jax.corpus import components
from biomedlm_jax.corpus.components import smallest_members


@pytest.mark.parametrize("links", [0, 50, 400, 3000])
def test_components_are_those_of_scipy(links, monkeypatch):
    monkeypatch.setattr(components, "_CHUNK", 17)
    one, other = np.random.default_rng(links).integers(0, 1000, (2, links)).astype(np.uint32)
    pieces = [(one[first : first + 70], other[first : first + 70]) for first in range(0, links, 70)]
    got = smallest_members(1000, lambda: pieces)
    graph = coo_array((np.ones(links, bool), (one, other)), shape=(1000, 1000))
    component = connected_components(graph, directed=False)[1]
    smallest = np.full(1000, 1000)
    np.minimum.at(smallest, component, np.arange(1000))
    assert got.dtype == np.int32
    assert got.tolist() == smallest[component].tolist()


def test_a_long_chain_needs_few_rounds():
    rounds = []

    def links():
        rounds.append(1)
        backwards = np.arange(9999, 0, -1)
        return [(backwards, backwards - 1)]

    assert not smallest_members(10_000, links).any()
    assert len(rounds) == 2
