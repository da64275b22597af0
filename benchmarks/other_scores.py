"""What torch-fidelity and clean-fid make of drawn weights, pictures and features: the numbers that tests expect of us.

    python3 -m venv ENVIRONMENT  # apart from this project's: they need torchvision
    ENVIRONMENT/bin/pip install torch==2.13.0 torchvision==0.28.0 scipy==1.17.1 pillow==13.0.0 requests tqdm
    ENVIRONMENT/bin/pip install --no-deps torch-fidelity==0.4.0 clean-fid==0.1.35
    ENVIRONMENT/bin/python benchmarks/other_scores.py

It writes tests/scores/goldens/, in a minute on one core: inception.npz, the features of the Inception with drawn
weights and points of the pictures it is given, by both ways of resizing; and distances.json. Weights and pictures are
not kept, tests/scores/drawn.py draws them again. The published weights are not needed: what holds with drawn ones, of
which every one counts, holds with those.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

TESTS = Path(__file__).resolve().parents[1] / "tests" / "scores"


def load_recipe() -> ModuleType:
    """tests/scores/drawn.py, by itself: the package of the tests needs more than is installed here."""
    spec = importlib.util.spec_from_file_location("drawn", TESTS / "drawn.py")
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe


def name_operators() -> torch.library.Library:
    """Let torchvision be imported where its compiled operators are of a CUDA build and torch is not: none is used here.

    Its import describes two of them, which must have names by then. What is returned keeps those.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def both_networks(drawn: ModuleType) -> tuple[torch.nn.Module, torch.nn.Module]:
    """(torch-fidelity's, clean-fid's) Inception with the same drawn weights."""
    from cleanfid import inception_pytorch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    bare = inception_pytorch._inception_v3(num_classes=1008, aux_logits=False, pretrained=False)
    shapes = {key: tuple(value.shape) for key, value in bare.state_dict().items()}
    state = {key: torch.from_numpy(value) for key, value in drawn.drawn_state(shapes).items()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "drawn.pth"
        torch.save(state, file)
        fidelity = FeatureExtractorInceptionV3("drawn", ["2048"], feature_extractor_weights_path=str(file))
    inception_pytorch.load_state_dict_from_url = lambda *_, **__: state  # in place of the published weights
    return fidelity, inception_pytorch.InceptionV3(resize_input=False, normalize_input=False).eval()


def inception(drawn: ModuleType) -> dict[str, np.ndarray]:
    """Features (N, 2048) and resized pictures (N, points, points, 3), as torch-fidelity and as clean-fid has them."""
    from cleanfid.resize import build_resizer
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    fidelity, clean = both_networks(drawn)
    resizer, points = build_resizer("clean"), np.ix_(drawn.GRID, drawn.GRID)
    found: dict[str, list[np.ndarray]] = {"features_tf1": [], "features_clean": [], "tf1": [], "clean": []}
    for picture in drawn.drawn_pictures():
        levels, seen = torch.from_numpy(picture).movedim(-1, 0)[None], resizer(picture)
        wide = interpolate_bilinear_2d_like_tensorflow1x(levels.float(), size=(299, 299), align_corners=False)
        with torch.no_grad():
            found["features_tf1"].append(fidelity(levels)[0].numpy()[0])
            scaled = (torch.from_numpy(seen).movedim(-1, 0)[None] - 128) / 128
            found["features_clean"].append(clean(scaled)[0].flatten(1).numpy()[0])
            other = clean((wide - 128) / 128)[0].flatten(1).numpy()[0]
        assert np.allclose(other, found["features_tf1"][-1], rtol=1e-4, atol=1e-4), "the two networks differ"
        found["tf1"].append(wide[0].movedim(0, -1).numpy()[points])
        found["clean"].append(seen[points])
    return {key: np.stack(values).astype(np.float32) for key, values in found.items()}


def distances(drawn: ModuleType, kind: str) -> dict[str, Any]:
    """FID, KID and precision and recall of a pair of sets of features, by whose code they are."""
    from cleanfid import fid as clean
    from torch_fidelity import metric_fid, metric_kid, metric_prc

    np.random.seed(0)  # clean-fid's subsets are of all rows, but in a drawn order
    real, generated = drawn.drawn_features(kind)
    first, second = torch.from_numpy(generated), torch.from_numpy(real)
    one, other = (metric_fid.fid_features_to_statistics(features) for features in (first, second))
    found: dict[str, Any] = {
        "frechet": {
            "torch-fidelity": metric_fid.fid_statistics_to_metric(one, other, False)[metric_fid.KEY_METRIC_FID],
            "clean-fid": float(clean.frechet_distance(one["mu"], one["sigma"], other["mu"], other["sigma"])),
        },
        # One subset of all rows; both draw subsets, and with fewer rows their means are of those.
        "kernel": {
            "torch-fidelity": metric_kid.kid_features_to_metric(
                first, second, kid_subsets=1, kid_subset_size=len(first), verbose=False
            )[metric_kid.KEY_METRIC_KID_MEAN],
            "clean-fid": clean.kernel_distance(generated, real, num_subsets=1, max_subset_size=len(first)),
        },
        "manifold": {},
    }
    for k in drawn.NEIGHBOURS:
        precision, recall = metric_prc.calculate_precision_recall_full(first, second, neighborhood=k)
        found["manifold"][str(k)] = {"precision": precision, "recall": recall}
    return found


def main() -> None:
    """Write both files and print what is in them."""
    drawn, goldens, _kept = load_recipe(), TESTS / "goldens", name_operators()
    goldens.mkdir(exist_ok=True)
    arrays = inception(drawn)
    np.savez_compressed(goldens / "inception.npz", **arrays)
    numbers = {kind: distances(drawn, kind) for kind in drawn.SETS}
    (goldens / "distances.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    for key, values in arrays.items():
        sys.stdout.write(f"{key}: {values.shape}, mean {values.mean():.4f}, std {values.std():.4f}\n")
    sys.stdout.write(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
