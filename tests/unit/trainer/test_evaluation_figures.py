import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics
from torchmetrics.functional.classification import multiclass_calibration_error

from configs.problems import ConfigError
from trainer.evaluation.figures import BINS, RealFigures, figures
from trainer.evaluation.labels import labels_of, read_real_labels
from trainer.evaluation.plots import draw
from trainer.evaluation.samples import Outputs

CLASSES = 12


def predictions(samples: int = 500, *, seed: int = 0) -> tuple[torch.Tensor, np.ndarray, Outputs]:
    """Probabilities, labels (none of class 7), and what the table would have of them; a few are sure to the bit."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([label for label in range(CLASSES) if label != 7], samples)
    logits = torch.tensor(rng.normal(size=(samples, CLASSES)) * 2, dtype=torch.float32)
    logits[np.arange(0, samples, 2), labels[::2]] += 4
    logits[:5, 3] += 200
    probabilities = logits.double().softmax(1)
    losses = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(labels), reduction="none")
    ranked = logits.topk(5).indices.numpy()
    return probabilities, labels, Outputs(labels, ranked, probabilities.max(1).values.numpy(), losses.numpy())


def test_figures_are_those_of_scikit_learn() -> None:
    probabilities, labels, outputs = predictions()
    found = figures(outputs, num_classes=CLASSES)
    predicted, every = probabilities.argmax(1).numpy(), range(CLASSES)

    assert found.samples == 500
    assert found.top1 == pytest.approx(metrics.accuracy_score(labels, predicted), abs=1e-12)
    top5 = metrics.top_k_accuracy_score(labels, probabilities.numpy(), k=5, labels=every)
    assert found.top5 == pytest.approx(top5, abs=1e-12)
    assert found.loss == pytest.approx(
        -np.mean([float(np.log(p[label])) for p, label in zip(probabilities, labels, strict=True)]), rel=1e-9
    )
    np.testing.assert_array_equal(found.confusion, metrics.confusion_matrix(labels, predicted, labels=every))
    present = sorted(set(labels))
    recalls = metrics.recall_score(labels, predicted, labels=present, average=None)
    np.testing.assert_allclose(found.class_top1[present], recalls)
    assert np.isnan(found.class_top1[7])
    assert found.balanced_top1 == pytest.approx(np.mean(recalls), abs=1e-12)


def test_the_calibration_error_is_the_mean_distance_of_the_bins() -> None:
    probabilities, labels, outputs = predictions()
    found = figures(outputs, num_classes=CLASSES)

    confidence, right = probabilities.max(1).values.numpy(), probabilities.argmax(1).numpy() == labels
    expected = 0.0
    for number in range(BINS):
        low, high = number / BINS, (number + 1) / BINS
        inside = (confidence >= low) & ((confidence < high) | ((number == BINS - 1) & (confidence <= 1)))
        assert found.reliability.samples[number] == inside.sum()
        if inside.any():
            assert found.reliability.top1[number] == pytest.approx(right[inside].mean())
            assert found.reliability.confidence[number] == pytest.approx(confidence[inside].mean())
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert (confidence == 1).sum() == 5
    assert found.calibration_error == pytest.approx(expected, abs=1e-9)
    unsure = probabilities[5:]
    theirs = multiclass_calibration_error(unsure, torch.tensor(labels[5:]), CLASSES, n_bins=BINS)
    rest = Outputs(labels[5:], outputs.ranked[5:], outputs.confidences[5:], outputs.losses[5:])
    assert figures(rest, num_classes=CLASSES).calibration_error == pytest.approx(float(theirs), abs=1e-9)


def test_the_commonest_mistakes_come_first() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    ranked = np.array([[1], [1], [0], [1], [0], [0], [0], [0], [2]])
    found = figures(Outputs(labels, ranked, np.full(9, 0.5), np.ones(9)), num_classes=3)

    assert found.most_confused(2) == [(2, 0, 3), (0, 1, 2)]
    assert found.most_confused(9) == [(2, 0, 3), (0, 1, 2), (1, 0, 1)]


def test_by_real_labels_any_of_them_is_right_and_a_sample_without_does_not_count() -> None:
    labels, ranked = np.array([0, 1, 2, 0]), np.array([[0, 1], [2, 1], [2, 0], [1, 2]])
    outputs = Outputs(labels, ranked, np.full(4, 0.5), np.ones(4))
    real = [frozenset({1, 0}), frozenset({1}), frozenset(), frozenset({0})]

    assert figures(outputs, num_classes=3, real=real).real == RealFigures(samples=3, top1=1 / 3, top5=2 / 3)
    assert figures(outputs, num_classes=3).real is None


def test_reals_own_list_goes_by_the_number_in_a_name() -> None:
    real = read_real_labels("imagenet")

    assert len(real) == 50_000
    own = json.loads((Path(np.__file__).parents[1] / "timm/data/_info/imagenet_real_labels.json").read_text())
    for number in (1, 2, 24, 50_000):
        assert labels_of(f"n01751748/ILSVRC2012_val_{number:08d}", real) == frozenset(own[number - 1])
    assert labels_of("ILSVRC2012_val_00050001", real) is None
    assert labels_of("a/b", real) is None


def test_other_files_go_by_the_names_of_images(tmp_path: Path) -> None:
    file = tmp_path / "v2.json"
    file.write_text(json.dumps({"0/abc.jpeg": 5, "10/abc.jpeg": [1, 2], "def": 3}))
    real = read_real_labels(str(file))

    assert labels_of("matched/0/abc", real) == {5}
    assert labels_of("10/abc", real) == {1, 2}
    assert labels_of("x/def", real) == {3}
    assert labels_of("abc", real) is None


@pytest.mark.parametrize("content", ["{", "3", "[]", "{}", '{"a": "cat"}', "[[1], [true]]", "[[-1]]", '{"a": 1.5}'])
def test_what_is_no_file_of_labels_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "labels.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match="--real-labels"):
        read_real_labels(str(file))


@pytest.mark.parametrize("classes", [12, 30, 300])
def test_plots_show_both_sets_of_weights(classes: int, tmp_path: Path) -> None:
    _, _, outputs = predictions()
    found = figures(outputs, num_classes=classes)
    draw({"raw weights": found, "averaged weights": found}, tmp_path, suffix="64-1", name=str)
    draw({"raw weights": found}, tmp_path, suffix="64-0.5", name=str)

    for kind in ("confusion", "reliability", "classes"):
        with Image.open(tmp_path / f"{kind}-64-1.png") as both, Image.open(tmp_path / f"{kind}-64-0.5.png") as one:
            assert both.width * both.height == pytest.approx(2 * one.width * one.height, rel=0.01)
            assert len(np.unique(np.asarray(both))) > 50
