"""The head that looks at all patch tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dinoprobe.errors import ConfigurationError, FormatError, HeadError, NonFiniteError
from dinoprobe.heads import AttentiveProbe, LogisticProbe, from_state, to_state
from dinoprobe.heads.attentive import _Pool

FAST = {"heads": 2, "epochs": 12, "batch_size": 16}


def planted(n=160, t=9, d=8, seed=0):
    """One token of each image tells its class, in a direction of its own; the rest is noise.

    Signs cancel in the mean over tokens: only attention finds them.
    """
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(n, t, d)) * 0.7
    codes, place = np.arange(n) % 2, rng.integers(0, t - 1, n)
    mark = np.zeros(d)
    mark[0], mark[1] = 6.0, 3.0
    for image, (code, at) in enumerate(zip(codes, place, strict=True)):
        tokens[image, at] = mark * [1, 2 * code - 1, *[0] * (d - 2)]
        tokens[image, at + 1] = -mark * [1, 2 * code - 1, *[0] * (d - 2)]
    return (tokens + 5).astype(np.float16), np.array(["a", "b"], dtype=object)[codes]


def test_it_finds_what_a_mean_can_not():
    X, y = planted(600)
    rows, labels = planted(200, seed=1)
    head = AttentiveProbe(heads=2, epochs=40, batch_size=32).fit(X, y)
    mean = LogisticProbe().fit(X.astype(np.float32).mean(1), y)
    assert mean.score(rows.astype(np.float32).mean(1), labels) < 0.65
    assert (head.predict(rows) == labels).mean() > 0.95
    assert head.loss_history_[-1] < head.loss_history_[0]


def written_out(pool, tokens, heads):
    """Keys and values computed for every token, as the papers have it."""
    n, t, d = tokens.shape
    keys = (tokens @ pool.key.T).view(n, t, heads, -1)
    values = (tokens @ pool.value.T).view(n, t, heads, -1)
    scores = (keys * pool.query).sum(-1) / math.sqrt(d // heads)
    pooled = (scores.softmax(1)[..., None] * values).sum(1).flatten(1)
    return pooled @ pool.weight.T + pool.bias


def test_the_short_form_equals_attention_written_out():
    pool = _Pool(12, 3, 5, seed=0)
    tokens = torch.randn(4, 7, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pool.query *= 100  # at the start it is small, and attention nearly flat
        torch.testing.assert_close(pool(tokens), written_out(pool, tokens, 3))


def test_standardisation_is_folded_in():
    """What is kept equals the trained module on standardised tokens."""
    X, y = planted()
    head = AttentiveProbe(**FAST)
    kept = {}
    original = head._keep
    head._keep = lambda *found: (kept.update(found=found), original(*found))
    head.fit(X, y)
    pool, mean, scale = kept["found"]
    with torch.no_grad():
        logits = pool(torch.from_numpy(((X - mean) / scale).astype(np.float32)))
    np.testing.assert_allclose(head.predict_proba(X), logits.double().softmax(1), atol=1e-5)


def test_a_seed_repeats_it_and_the_global_generator_is_left_alone():
    X, y = planted()
    before = torch.get_rng_state()
    first, again = (AttentiveProbe(**FAST).fit(X, y) for _ in range(2))
    other = AttentiveProbe(**FAST, random_state=1).fit(X, y)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(first.attention_, again.attention_)
    assert not np.array_equal(first.attention_, other.attention_)


def test_an_image_does_not_depend_on_the_others():
    X, y = planted()
    head = AttentiveProbe(**FAST).fit(X, y)
    whole = head.predict_proba(X)
    assert np.array_equal(head.predict_proba(X[70:90]), whole[70:90])
    np.testing.assert_allclose(whole.sum(axis=1), 1)


class Counting:
    """Tokens that are read when asked for; remembers the most images at a time."""

    def __init__(self, X):
        self.X, self.shape, self.most = X, X.shape, 0

    def __getitem__(self, rows):
        found = self.X[rows]
        self.most = max(self.most, len(found))
        return found


def test_tokens_are_read_batch_by_batch(tmp_path):
    X, y = planted()
    np.save(tmp_path / "tokens.npy", X)
    mapped, counting = np.load(tmp_path / "tokens.npy", mmap_mode="r"), Counting(X)
    heads = [AttentiveProbe(**FAST).fit(tokens, y) for tokens in (X, mapped, counting)]
    assert all(np.array_equal(heads[0].value_, head.value_) for head in heads[1:])
    assert np.array_equal(heads[0].predict_proba(X), heads[0].predict_proba(counting))
    assert counting.most == 64


def test_saved_and_loaded_it_predicts_the_same_bits():
    X, y = planted()
    head = AttentiveProbe(**FAST).fit(X, y)
    values, arrays = to_state(head)
    assert values["kind"] == "attentive"
    loaded = from_state(values, arrays)
    assert np.array_equal(loaded.predict_proba(X), head.predict_proba(X))
    for broken in ({"heads": 3}, {"heads": "2"}, {"heads": 0}):
        with pytest.raises(FormatError, match="heads"):
            from_state({**values, **broken}, arrays)
    with pytest.raises(FormatError, match="attention"):
        from_state(values, {**arrays, "attention": arrays["attention"][:, :4]})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"heads": 3}, HeadError, "divisor of the width of a token, 8"),
        ({"heads": 0}, ConfigurationError, "heads=0"),
        ({"lr": 0.0}, ConfigurationError, "lr=0.0"),
        ({"lr": 1e30, "epochs": 2}, HeadError, "no longer finite at lr=1e\\+30"),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        AttentiveProbe(**options).fit(*planted())


def test_wrong_tokens():
    X, y = planted()
    with pytest.raises(HeadError, match=r"shape \(160, 8\); expected \(images, tokens, width\)"):
        AttentiveProbe(heads=2).fit(X[:, 0], y)
    with pytest.raises(HeadError, match="one class, 'a'"):
        AttentiveProbe(heads=2).fit(X, ["a"] * 160)
    with pytest.raises(HeadError, match="label None"):
        AttentiveProbe(heads=2).fit(X, np.where(np.arange(160) == 3, None, y))
    head = AttentiveProbe(**FAST).fit(X, y)
    with pytest.raises(HeadError, match="4 features; expected 8"):
        head.predict_proba(X[:, :, :4])
    broken = X.copy()
    broken[70, 2, 1] = np.nan
    with pytest.raises(NonFiniteError, match="image 70"):
        head.predict_proba(broken)
    with pytest.raises(NonFiniteError, match="image 70"):
        AttentiveProbe(heads=2).fit(broken, y)
