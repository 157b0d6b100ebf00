import random
import re
import subprocess
import sys

import numpy as np
import pytest
from datasketch import MinHash

from biomedlm_jax.corpus.signatures import (
    SEEDS,
    Banding,
    containment,
    jaccard,
    shingles,
    sign,
    text_hash,
)

BANDING = Banding.of(0.8)
RNG = random.Random(0)
WORDS = [f"word{i}" for i in range(3000)]


def words(count: int) -> list[str]:
    return RNG.choices(WORDS, k=count)


def exact_shingles(text: str) -> set[tuple[str, ...]]:
    """The definition: all runs of five words in lower case."""
    there = re.findall(r"\w+", text.lower())
    width = min(5, len(there))
    return {tuple(there[i : i + width]) for i in range(len(there) - width + 1)} if there else set()


def test_similarity_is_that_of_the_sets_of_shingles():
    base = words(300)
    for changes in (0, 1, 5, 40, 300):
        other = list(base)
        for place in RNG.sample(range(300), changes):
            other[place] = RNG.choice(WORDS)
        one, two = " ".join(base), "; ".join(other).upper()
        a, b = exact_shingles(one), exact_shingles(two)
        assert jaccard(shingles(one), shingles(two)) == len(a & b) / len(a | b)
        assert containment(shingles(one), shingles(two)) == len(a & b) / len(a)
        assert len(shingles(one)) == len(a)


def test_short_and_empty_texts():
    assert shingles("").size == shingles(" -- ?! ").size == 0
    assert shingles("Two words").size == 1
    assert jaccard(shingles("two WORDS"), shingles("Two words!")) == 1
    assert jaccard(shingles("two words"), shingles("other words")) == 0
    assert jaccard(shingles(""), shingles("")) == containment(shingles(""), shingles("a")) == 0
    # Composed and decomposed letters are the same words.
    assert np.array_equal(shingles("caf\u00e9 au lait"), shingles("cafe\u0301 au lait"))
    signature = sign("", BANDING)
    assert not signature.bands.any()
    assert not signature.seeds.any()


def test_minhash_values_estimate_the_similarity():
    """Against datasketch over the same shingles, hashed by its own function."""
    base = words(400)
    other = [*base[:320], *words(80)]
    one, two = (MinHash(num_perm=BANDING.bands * BANDING.rows) for _ in range(2))
    for minhash, text in ((one, base), (two, other)):
        minhash.update_batch([" ".join(s).encode() for s in exact_shingles(" ".join(text))])
    a, b = (sign(" ".join(text), Banding(126, 1)).bands for text in (base, other))
    truth = jaccard(shingles(" ".join(base)), shingles(" ".join(other)))
    error = 4 * (truth * (1 - truth) / 126) ** 0.5
    assert abs(np.mean(a == b) - truth) < error
    assert abs(one.jaccard(two) - truth) < error


def test_bands_have_the_recall_of_their_formula():
    assert Banding.of(0.8) == Banding(21, 6)
    assert Banding.of(0.8).recall(0.8) > 0.998 > Banding(18, 7).recall(0.8)
    assert Banding.of(1.0) == Banding(1, 128)
    assert Banding.of(0.01) == Banding(128, 1)
    assert Banding(21, 6).recall(0.8) == pytest.approx(1 - (1 - 0.8**6) ** 21)


def test_seeds_are_the_smallest_of_the_sample():
    text = " ".join(words(500))
    signature, all_shingles = sign(text, BANDING), shingles(text)
    assert set(signature.sample) <= set(all_shingles)
    assert 30 < len(signature.sample) < 100  # one in eight
    assert list(signature.seeds) == sorted(signature.sample)[:SEEDS]
    longer = sign(f"{' '.join(words(50))} {text} {' '.join(words(900))}", BANDING)
    assert set(signature.sample) <= set(longer.sample)


def test_text_hash_ignores_white_space_and_composition_only():
    assert text_hash("a  b\n\nc ") == text_hash("a b c")
    assert text_hash("\u00e9") == text_hash("e\u0301")
    assert len({text_hash(text) for text in ("p < 0.05", "p > 0.05", "P < 0.05", "p<0.05")}) == 4


def test_signatures_are_the_same_in_another_process():
    """Python's own hashes of strings differ between processes."""
    code = (
        "from biomedlm_jax.corpus.signatures import *; "
        "s = sign('Aspirin inhibits platelets in most of the patients.', Banding.of(0.8)); "
        "print(s.exact, s.bands[:2].tolist(), s.seeds[:1].tolist())"
    )
    fixed = (  # on every machine
        "(2658578441445091811, 3596410432714306006) "
        "[2390727043887961701, 14391517770272549755] [178888885304752180]"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert printed.stdout.strip() == fixed
