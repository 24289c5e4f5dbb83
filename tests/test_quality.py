"""Distances between sets, against closed forms; features that a small network learns."""

import math
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg
from sklearn.datasets import load_digits

from variational_diffusion.config import DataConfig
from variational_diffusion.data import Split, open_dataset
from variational_diffusion.data.arrays import ArraySource
from variational_diffusion.errors import InputError
from variational_diffusion.quality import (
    DISTANCES,
    Classifier,
    Features,
    Inception,
    Reference,
    combined,
    directions,
    distances,
    estimate,
    features_of,
    fit_classifier,
    frechet,
    kernel,
    labels_of,
    load_classifier,
    nearest,
    new_classifier,
    patches,
    precision,
    recall,
    save_classifier,
    sliced_wasserstein,
)
from variational_diffusion.quality.classifier import turned, turns
from variational_diffusion.storage.tensors import write_tensors


def exactly(n, mean, root, rng):
    """Return n rows whose empirical mean and covariance are `mean` and rootᵀ root."""
    white = rng.standard_normal((n, len(mean)))
    white -= white.mean(0)
    white = white @ np.linalg.inv(np.linalg.cholesky(np.cov(white.T)).T)
    return mean + white @ root


def test_frechet_distance_of_gaussians():
    rng = np.random.default_rng(0)
    mean, other = rng.standard_normal((2, 5))
    a, b = rng.standard_normal((2, 5, 5))
    x, y = exactly(50, mean, a, rng), exactly(70, other, b, rng)
    s, t = a.T @ a, b.T @ b
    root = linalg.sqrtm(s @ t)  # the textbook's way
    expected = np.square(mean - other).sum() + np.trace(s + t - 2 * root.real)
    assert frechet(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet(y, x) == pytest.approx(expected, rel=1e-9)
    assert frechet(x, 3 + x) == pytest.approx(45, rel=1e-12)
    assert frechet(x, x[::-1]) == pytest.approx(0, abs=1e-10)


def test_frechet_distance_with_fewer_rows_than_dimensions():
    rng = np.random.default_rng(1)
    plane, _ = np.linalg.qr(rng.standard_normal((40, 3)))
    x, y = rng.standard_normal((10, 3)), rng.standard_normal((8, 3))
    assert frechet(x @ plane.T, y @ plane.T) == pytest.approx(frechet(x, y), rel=1e-9)


def test_kernel_distance_is_unbiased():
    """Exact for Gaussians in one dimension, where k = (x y + 1)³ needs three moments."""
    rng = np.random.default_rng(2)

    def moments(mean, std):
        return np.array([1, mean, mean**2 + std**2, mean**3 + 3 * mean * std**2])

    for mean, std in [(0.0, 1.0), (0.4, 0.8)]:
        apart = moments(0.0, 1.0) - moments(mean, std)
        expected = np.array([1, 3, 3, 1]) @ np.square(apart)
        values = [
            kernel(rng.standard_normal((9, 1)), mean + std * rng.standard_normal((7, 1)))
            for _ in range(2000)
        ]
        # two-sided, 4 standard errors: a false alarm in 16,000
        assert abs(np.mean(values) - expected) < 4 * np.std(values) / np.sqrt(2000)


def test_kernel_distance_is_the_double_sum():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((5, 4)), rng.standard_normal((6, 4))

    def k(a, b):
        return (a @ b / 4 + 1) ** 3

    within = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    within += np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    between = np.mean([k(a, b) for a in x for b in y])
    assert kernel(x, y) == pytest.approx(within - 2 * between, rel=1e-10)


def test_precision_and_recall_of_constructed_sets():
    line = np.arange(10.0)[:, None]  # a ball's radius: 2 inside, 3 at the ends
    far = 1000 + np.arange(10.0)[:, None]
    assert precision(line, line) == recall(line, line) == 1
    assert precision(far, line) == recall(far, line) == 0
    samples = np.concatenate([line[:4], far[:4]])  # half are like the examples, and cover half
    assert precision(samples, line) == 0.5
    assert recall(samples, line) == 0.7  # 0, …, 3 and the three within 3 of the last
    # more than the third neighbour away, from the end and from the middle
    assert precision(np.array([[12.0], [12.1], [4.5], [4.4]]), line) == 0.75
    # every ball has its own radius: 0.3 about the last of the dense ones, 3 about the last
    dense_and_sparse = np.concatenate([line[:4] / 10, 10 + line[:4]])
    assert precision(np.array([[0.5], [1.0], [15.5], [16.5]]), dense_and_sparse) == 0.5


def test_sliced_wasserstein_distance_of_gaussians():
    rng = np.random.default_rng(4)
    scale, shift, d = 1.7, np.array([0.5, -1.0, 0.2]), 3
    x = rng.standard_normal((1500, d))
    y = shift + scale * rng.standard_normal((1500, d))
    axes = directions(d, 100)
    expected = np.sqrt(np.square(shift @ axes).mean() + (scale - 1) ** 2)
    found = estimate(sliced_wasserstein, x @ axes, y @ axes)
    assert abs(found.value - expected) < 4 * found.error  # two-sided: a false alarm in 1,000
    assert found.error < 0.1 * expected
    # a mean over the sphere: shift² / d, with a standard deviation of 9 % for 100 axes
    assert np.square(shift @ axes).mean() == pytest.approx(np.square(shift).sum() / d, rel=0.36)
    np.testing.assert_allclose(np.linalg.norm(axes, axis=0), 1)


@pytest.mark.parametrize("sizes", [(6, 6), (6, 4), (3, 7)])
def test_sliced_wasserstein_distance_of_sets_of_two_sizes(sizes):
    rng = np.random.default_rng(5)
    x, y = (rng.standard_normal((size, 2)) for size in sizes)
    n, m = sizes
    pairs = np.square(np.sort(np.repeat(x, m, 0), 0) - np.sort(np.repeat(y, n, 0), 0))
    assert sliced_wasserstein(x, y) == pytest.approx(np.sqrt(pairs.mean()), rel=1e-12)
    parts = sliced_wasserstein(x[:, None], y.reshape(m, 1, 2))
    assert parts == pytest.approx(sliced_wasserstein(x, y), rel=1e-12)


def pairs(rng, repeats, n=200, m=160):
    for _ in range(repeats):
        yield 0.5 + 1.3 * rng.standard_normal((n, 4)), rng.standard_normal((m, 4))


@pytest.mark.parametrize("name", DISTANCES)
def test_the_jackknife_gives_the_spread_over_repetitions(name):
    rng = np.random.default_rng(6)
    estimates = [estimate(DISTANCES[name], *sets) for sets in pairs(rng, 60)]
    spread = np.std([one.value for one in estimates], ddof=1)
    stated = np.sqrt(np.mean([one.error**2 for one in estimates]))
    # the spread of 60 is known to 9 %, the mean of the errors to 2 %: three and a half of that;
    # by all blocks but one, the errors of precision and recall were 1.5 to 1.9 times too large
    assert 0.7 < stated / spread < 1.35


@pytest.mark.parametrize("name", ["FID", "KID"])
def test_sets_that_are_drawn_alike_have_errors_that_are_not_too_large(name):
    """There the distances are of the second order, which the jackknife counts twice or more."""
    rng = np.random.default_rng(16)
    sets = rng.standard_normal((60, 2, 200, 4))
    estimates = [estimate(DISTANCES[name], *pair) for pair in sets]
    spread = np.std([one.value for one in estimates], ddof=1)
    stated, alone = (
        np.sqrt(np.mean(squares))
        for squares in zip(
            *((one.error**2, one.parts[0].variance) for one in estimates), strict=True
        )
    )
    # 9 % of the spread, about 9 % of the mean error, three of both; the jackknife: 1.4 to 1.7
    assert 0.7 < stated / spread < 1.35
    assert alone / stated > 1.2


def test_orders_of_a_statistic_are_told_apart(monkeypatch):
    """A mean of n values is of the first order, a mean of their pairs of the second."""

    def mean(a, b):
        return float(a.mean())

    def of_pairs(a, b):
        n = len(a)
        return float((np.square(a.sum(0)).sum() - np.square(a).sum()) / (n * (n - 1)))

    monkeypatch.setattr(distances, "SQUARED", (mean, of_pairs))
    sets = np.random.default_rng(17).standard_normal((300, 200, 8))
    for statistic, true, times in (
        (mean, 1 / 1600, (1, 1)),
        (of_pairs, 16 / (200 * 199), (2.05, 5)),
    ):
        estimates = [estimate(statistic, x, x) for x in sets]
        for i, expected in enumerate(times):
            found = np.mean([one.parts[i].variance for one in estimates]) / true
            # 300 of 19 degrees of freedom, of pairs of 8: 2 % and 4 %; parts make it no better
            assert found == pytest.approx(expected, rel=0.15)
        whole = np.mean([one.error**2 for one in estimates]) / true
        # 1 but for chance that makes the second order less than none of it, or more than all
        assert 0.7 < whole < 1.45


def test_what_two_estimates_share_counts_once():
    rng = np.random.default_rng(7)
    y = rng.standard_normal((200, 3))
    near, same = y + 0.1, y + 0.1
    a, b = estimate(frechet, near, y), estimate(frechet, same, y)
    ratio = combined(lambda a, b: a / b, a, b)
    assert ratio.value == 1
    assert ratio.error == 0
    half = combined(lambda a: a / 2, a)
    assert (half.value, half.error) == pytest.approx((a.value / 2, a.error / 2))


def test_errors_of_a_mean_are_those_of_a_mean():
    rng = np.random.default_rng(8)
    x, y = np.sort(rng.standard_normal((40, 1)), axis=0), rng.standard_normal((60, 1))
    seen = []

    def difference(a, b):
        seen.append((a, b))
        return float(a.mean() - b.mean())

    found = estimate(difference, x, y, blocks=20)
    left_out = [(np.setdiff1d(x, a), np.setdiff1d(y, b)) for a, b in seen if len(a) < 40]
    assert [(len(a), len(b)) for a, b in left_out] == 20 * [(2, 3)]
    for rows, whole in zip(zip(*left_out, strict=True), (x, y), strict=True):
        np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.sort(whole[:, 0]))
    blocks = [a.mean() - b.mean() for a, b in left_out]
    assert found.error == pytest.approx(np.std(blocks, ddof=1) / np.sqrt(20), rel=1e-9)
    with pytest.raises(InputError, match=r"39 samples and 60 examples: .*--n 40"):
        estimate(frechet, x[:39], y)


@pytest.mark.parametrize("blocks", [2, 5, 20])
def test_a_quarter_of_the_blocks_tells_the_error_of_a_mean(blocks, monkeypatch):
    """As parts that are all blocks but one do, also of rows that are sorted."""
    x = np.sort(np.random.default_rng(9).standard_normal((2000, 1)), axis=0)

    def mean(a, b):
        return float(a.mean())

    monkeypatch.setattr(distances, "LOCAL", (mean,))
    found = estimate(mean, x, x, blocks=blocks)
    assert [part.kept for part in found.parts] == [max(1, blocks // 4) / blocks]
    # 2, 5 and 20 block means give a standard deviation with a relative error of 1/√(2 blocks − 2)
    ratio = found.error / (x.std(ddof=1) / np.sqrt(2000))
    assert abs(math.log(ratio)) < 3.5 / math.sqrt(2 * blocks - 2)
    with pytest.raises(ValueError, match="parts of different sizes"):
        combined(lambda a, b: a - b, found, estimate(kernel, x[:80], x[:80], blocks=40))


def test_nearest_examples_come_in_order():
    y = np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [1.0, 0.0]])
    rows, far = nearest(np.array([[0.1, 0.0], [6.0, 7.0]]), [y[:1], y[1:]], 3)
    assert rows.tolist() == [[0, 3, 1], [2, 1, 3]]
    np.testing.assert_allclose(far[0], [0.1, 0.9, np.hypot(2.9, 4)])


def image_split(n=400, size=8):
    """Grey images with a bright half, left or right, which is their label."""
    rng = np.random.default_rng(9)
    labels = rng.integers(0, 2, n)
    images = rng.integers(0, 100, (n, 1, size, size), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, :, : size // 2] += np.uint8(100 * (label == 0))
        image[:, :, size // 2 :] += np.uint8(100 * (label == 1))
    return Split(ArraySource(images, "images"), np.arange(n)), labels


def test_a_classifier_learns_labels_and_is_read_back(tmp_path):
    split, labels = image_split()
    classifier = new_classifier(split, labels)
    before = classifier.digest
    right = list(fit_classifier(classifier, split, labels, steps=40))
    assert np.mean(right[-10:]) > 0.95
    assert classifier.digest != before
    path = tmp_path / "features.safetensors"
    save_classifier(path, classifier, learned="labels")
    again = load_classifier(path)
    assert again.digest == classifier.digest
    assert isinstance(again, Features)
    images = split.read()
    np.testing.assert_array_equal(features_of(again, images), features_of(classifier, images))
    write_tensors(path, {"a": torch.zeros(1)}, {})
    with pytest.raises(InputError, match="holds no classifier"):
        load_classifier(path)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 6)])
def test_every_turn_keeps_the_shape_and_is_another(shape):
    image = torch.arange(np.prod(shape)).reshape(1, *shape)
    many, ways = turned(image.expand(400, *shape), torch.Generator().manual_seed(0))
    assert many.shape[1:] == shape
    seen = {int(way): tuple(one.flatten().tolist()) for way, one in zip(ways, many, strict=True)}
    assert len(seen) == len(set(seen.values())) == turns(shape)
    assert seen[0] == tuple(range(int(np.prod(shape))))
    for one, way in zip(many, ways, strict=True):
        assert tuple(one.flatten().tolist()) == seen[int(way)]


def test_a_classifier_takes_images_only():
    with pytest.raises(InputError, match=r"take images, .* shape \(4,\); give --features pixels"):
        Classifier((4,), levels=None, classes=2)


def test_patches_are_cut_at_the_same_places_of_all_images():
    images = np.arange(2 * 3 * 6 * 7).reshape(2, 3, 6, 7)
    cut = patches(images, 11)
    assert cut.shape == (2, 8, 75)
    first = np.rint(cut[0, :, 0] * 10).astype(int)
    assert len(set(first)) > 2
    for patch, corner in zip(cut[0], first, strict=True):
        top, left = divmod(corner, 7)
        expected = images[0, :, top : top + 5, left : left + 5].ravel() / 10
        np.testing.assert_allclose(patch, expected)
    np.testing.assert_allclose(cut[1] - cut[0], 12.6)
    assert patches(images[:, :, :2, :3], None).shape == (2, 8, 18)


def test_a_reference_finds_what_is_wrong_with_samples():
    split, labels = image_split(800)
    classifier = new_classifier(split, labels)
    for _ in fit_classifier(classifier, split, labels, steps=40):
        pass
    images = split.read()
    reference = Reference(images[:300], classifier.eval(), levels=256)
    alike = reference.distances(images[300:600])
    assert abs(alike["KID"].value) < 4 * alike["KID"].error  # a false alarm in 1,000
    assert min(alike["precision"].value, alike["recall"].value) > 0.8
    half = reference.distances(images[300:][labels[300:] == 0])
    assert half["FID"].value > alike["FID"].value + 5 * half["FID"].error
    assert half["KID"].value > 5 * half["KID"].error
    assert half["precision"].value > 0.8
    assert half["recall"].value < 0.6
    noise = np.random.default_rng(10).integers(-100, 101, (300, 1, 8, 8))
    noisy = (images[300:600] + noise).clip(0, 255).astype(np.uint8)
    noisy = reference.distances(noisy)
    for name in ("FID", "KID", "SW pixels", "SW patches"):
        worse = combined(lambda a, b: a - b, noisy[name], alike[name])
        assert worse.value > 4 * worse.error
    assert noisy["precision"].value < alike["precision"].value
    with pytest.raises(InputError, match=r"samples have shape \(1, 8, 7\), the examples"):
        reference.distances(images[..., :7])


def test_inception_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(InputError, match="pip install torch-fidelity torchvision, or give"):
        Inception(256)
    with pytest.raises(InputError, match="take images of integers"):
        Inception(None)


def test_inception_is_given_bytes_in_three_channels(monkeypatch):
    seen = []

    class Stub(torch.nn.Module):
        def __init__(self, name, outputs):
            super().__init__()
            assert (name, outputs) == ("inception-v3-compat", ["2048"])
            self.bias = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images):
            seen.append(images)
            return (images.float().mean((2, 3)) + self.bias,)

    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Stub
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    inception = Inception(17)
    assert isinstance(inception, Features)
    assert len(inception.digest) == 64
    features = features_of(inception, np.full((2, 1, 4, 4), 16, np.uint8))
    np.testing.assert_array_equal(features, np.full((2, 3), 255))
    assert seen[0].dtype == torch.uint8
    with pytest.raises(InputError, match="take images; give --features pixels"):
        inception(torch.zeros(2, 5))

    def offline(*arguments):
        raise OSError("no route")

    monkeypatch.setattr(module, "FeatureExtractorInceptionV3", offline)
    with pytest.raises(InputError, match=r"weights cannot be fetched \(no route\); connect"):
        Inception(256)


def test_labels_come_from_whatever_data_have_them(tmp_path):
    config = DataConfig(source="digits")
    labels, split = labels_of(config, "test"), open_dataset(config).splits["test"]
    assert (labels == load_digits().target[split.indices]).all()
    for source in ("a/1.png", "a/2.png", "b/3.png", "b/4.png", "a/5.png", "b/6.png"):
        path = tmp_path / "folder" / source
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 255 * (source[0] == "b")).save(path)
    config = DataConfig(source=str(tmp_path / "folder"))
    split = open_dataset(config).splits["train"]
    assert labels_of(config, "train").tolist() == (split.read()[:, 0, 0, 0] == 255).tolist()
    assert labels_of(DataConfig(source=str(tmp_path / "folder" / "a")), "train") is None
    np.save(tmp_path / "x.npy", np.zeros((9, 4), np.uint8))
    assert labels_of(DataConfig(source=str(tmp_path / "x.npy")), "train") is None
