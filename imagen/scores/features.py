"""Feature networks: pictures -> vectors that distances of sets and neighbours are computed of.

Any vision model of ``transformers`` by folder or Hub id, or the Inception-v3 of the FID by its file
(:mod:`imagen.scores.inception`). Which one and what it was given decide every number that comes of it, so a network
carries a label for the name of the number (``fd[shapes-clip]``) and the whole of its preprocessing, by which kept
statistics are recognised (:mod:`imagen.scores.statistics`). The literature beside the FID: CLIP features (Kynkaanniemi
et al. 2023, arXiv:2203.06026), DINOv2's (Stein et al. 2023, arXiv:2306.04675).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from imagen.checks import check_choice, check_device, check_int
from imagen.errors import one_line
from imagen.scores.hub import muted, short_name
from imagen.scores.inception import load_inception
from imagen.scores.resize import RESIZES, SIDE, resized
from imagen.scores.sets import Array, check_features

STANDARD = {"tf1": "fid", "clean": "clean-fid"}
"""The label of the standard Inception by its resizing; no other network is called so."""
UNSAID = {"transformers_version", "architectures", "dtype"}
"""Entries of a model's config that no feature depends on."""
GIVE = "give a folder or Hub id of a CLIP, SigLIP, DINOv2 or ViT, or the file of the Inception's weights"


@dataclass(frozen=True)
class FeatureNetwork:
    """What makes features of pictures; :func:`load_features` builds it.

    Attributes:
        label: for names of numbers, as in ``fd[LABEL]``: the last part of the folder's or Hub id's name. "fid" and
            "clean-fid" are the standard Inception's alone, told by checksum.
        dim: D of its features.
        preprocessing: what decides a picture's feature, as JSON holds it: ``network``, a SHA-256 over the weights and
            the config; ``output``, which of its outputs; and size, resampling, mean, std of what it is given.
        embed: RGB pictures of one batch -> (N, D).
    """

    label: str
    dim: int
    preprocessing: dict[str, Any]
    embed: Callable[[Sequence[Image.Image]], Tensor]

    def features(self, pictures: Iterable[Image.Image], batch_size: int = 32) -> Array:
        """Features of pictures of any sizes, in their order.

        Args:
            pictures: taken ``batch_size`` at a time; other modes than RGB are converted.
            batch_size: how many the network sees at once; features depend on it by rounding alone.

        Returns:
            (N, D) float64, computed in float32.

        Raises:
            ValueError: no pictures, or a feature that is not finite.
        """
        check_int("batch_size", batch_size, 1)
        left, parts = iter(pictures), []
        while batch := [picture.convert("RGB") for picture in islice(left, batch_size)]:
            with torch.inference_mode():
                parts.append(self.embed(batch).double().cpu().numpy())
        if not parts:
            raise ValueError(f"no pictures for the features of {self.label!r}; give at least one")
        return check_features(f"features of {self.label!r}", np.concatenate(parts))


def load_features(name: str | Path, device: str = "cpu", resize: str | None = None) -> FeatureNetwork:
    """A feature network, frozen, in eval mode and float32.

    A network of text and images (CLIP, SigLIP) gives its image embedding; one of images its ``pooler_output`` where
    the checkpoint has one (DINOv2: the class token), else the mean over positions of ``last_hidden_state``. Pictures
    are prepared as its ``preprocessor_config.json`` says, by PIL even where torchvision is installed, whose resizing
    differs. A folder or Hub id of timm is read as well, where timm and torchvision are installed.

    Args:
        name: a folder or Hub id for ``transformers``, or the file of the Inception's weights, standard or not.
        resize: of the Inception alone. "tf1", the default, is that of the papers' FID, whose label is "fid"; "clean"
            that of clean-fid, with the label "clean-fid" (:mod:`imagen.scores.resize`).

    Raises:
        ValueError: nothing there, no network of images, no preprocessing beside it, weights that the checkpoint lacks,
            or ``resize`` for a network that has its own.
    """
    check_device("device", device)
    if Path(name).is_file():
        return _inception(Path(name), device, check_choice("resize", "tf1" if resize is None else resize, RESIZES))
    if resize is not None:
        raise ValueError(
            f"resize {resize!r} is for the Inception's file, and {str(name)!r} is none: its preprocessor_config.json "
            "says how pictures are resized; leave it out"
        )
    return _transformers(str(name), device)


def fingerprint(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over a network's config and its weights, by name; in which file or shards they lay is no matter."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _inception(path: Path, device: str, resize: str) -> FeatureNetwork:
    network, standard = load_inception(path)
    preprocessing = {
        "network": fingerprint(network.state_dict(), {"architecture": "inception-v3 of the FID"}),
        "output": "pool",
        "size": SIDE,
        "resize": resize,
        "mean": 128,
        "std": 128,
    }
    label = STANDARD[resize] if standard else _label(path.stem)
    network.to(device)

    def embed(pictures: Sequence[Image.Image]) -> Tensor:
        levels: Tensor = torch.cat([resized(picture, resize) for picture in pictures])
        features: Tensor = network((levels.to(device) - 128) / 128)
        return features

    return FeatureNetwork(label, network.dim, preprocessing, embed)


def _transformers(name: str, device: str) -> FeatureNetwork:
    model, processor, unset = _read(name)
    poolers = {key for key in unset if key.split(".")[0] == "pooler"}
    if unset - poolers:
        lacking = sorted(unset - poolers)
        raise ValueError(
            f"feature network {name!r} lacks {', '.join(lacking[:3])} of the right shape ({len(lacking)} in all); "
            "re-export it"
        )
    both = hasattr(model, "get_image_features")
    run = model.to(device).get_image_features if both else model.to(device)

    def answer(pictures: Sequence[Image.Image]) -> Any:
        return run(**processor(list(pictures), return_tensors="pt").to(device))

    with torch.inference_mode():
        found = answer([Image.new("RGB", (64, 64))])
    has_pooled = getattr(found, "pooler_output", None) is not None and not poolers
    output = "image embedding" if both else "pooler_output" if has_pooled else "mean of last_hidden_state"
    read = _pooled if both or has_pooled else _mean
    (dim,) = _check_features(name, read(found)).shape[1:]
    state = {key: value for key, value in model.state_dict().items() if key not in poolers}
    preprocessing = {
        "network": fingerprint(state, _said(model.config.to_diff_dict())),
        "output": output,
        **json.loads(processor.to_json_string()),
    }
    label = _label(short_name(name))
    return FeatureNetwork(label, dim, preprocessing, lambda pictures: read(answer(pictures)))


def _read(name: str) -> tuple[Any, Any, set[str]]:
    """(model, image processor, weights that the checkpoint did not set). Raises: ValueError, as `load_features`."""
    from transformers import MODEL_MAPPING, AutoConfig, AutoImageProcessor, AutoModel

    options: dict[str, Any] = {"trust_remote_code": False}
    needs = f"{name!r} is a network of timm, and needs timm and torchvision: pip install timm torchvision"
    if not Path(name).is_dir() and (name.startswith((".", "~", os.sep)) or name.count("/") > 1):
        raise ValueError(f"no feature network at {name!r}: there is no such folder or file; {GIVE}")
    with muted():
        try:
            config = AutoConfig.from_pretrained(name, **options)
        except ImportError as error:  # of timm, whose list of classes a config may need
            raise ValueError(needs) from error
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"no feature network at {name!r}: {_first_line(error)}; {GIVE}") from error
        # Its own preprocessing, which transformers wraps, is torchvision's.
        if config.model_type == "timm_wrapper" and not (find_spec("timm") and find_spec("torchvision")):
            raise ValueError(needs)
        kind = MODEL_MAPPING.get(type(config), None)
        if getattr(kind, "main_input_name", None) != "pixel_values" and not hasattr(kind, "get_image_features"):
            raise ValueError(f"{name!r} is a {config.model_type}, which looks at no pictures; {GIVE}")
        try:
            processor = AutoImageProcessor.from_pretrained(name, backend="pil", **options)
        except (OSError, ValueError, ImportError) as error:
            raise ValueError(
                f"{name!r} has no preprocessor_config.json that can be read ({_first_line(error)}); save its image "
                "processor beside it"
            ) from error
        try:
            options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # they are refused below
            model, told = AutoModel.from_pretrained(name, dtype=torch.float32, **options)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise ValueError(f"feature network {name!r} cannot be read: {_first_line(error)}; re-export it") from error
        except SafetensorError as error:
            raise ValueError(f"feature network {name!r} is damaged: {one_line(error)}; fetch it anew") from error
    unset = set(told["missing_keys"]) | {str(key[0]) for key in told["mismatched_keys"]}
    return model.requires_grad_(False), processor, unset  # from_pretrained leaves it in eval mode


def _first_line(error: BaseException) -> str:
    """What an error of transformers says first; the rest is advice about its Hub."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__


def _pooled(answer: Any) -> Tensor:
    """(N, D), or (N, D, 1, 1) of a convolutional network -> (N, D)."""
    return answer.pooler_output.flatten(1) if isinstance(answer.pooler_output, Tensor) else answer.pooler_output


def _mean(answer: Any) -> Tensor:
    """Of states (N, L, D) or (N, D, H, W) the mean over positions, (N, D)."""
    states: Tensor = answer.last_hidden_state
    return states.flatten(2).mean(2) if states.ndim == 4 else states.mean(1)


def _check_features(name: str, features: object) -> Tensor:
    """The features of one picture. Raises: ValueError, where a network gives something else, as one row a patch."""
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 1:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"{name!r} gives {shape} for a picture, expected one vector; {GIVE}")
    return features


def _said(config: Any) -> Any:
    """A config without what no feature depends on, at whatever depth."""
    if isinstance(config, dict):
        return {str(key): _said(value) for key, value in config.items() if key not in UNSAID}
    return config


def _label(name: str) -> str:
    """A folder's or file's name as a label. Raises: ValueError, where it is one of the standard Inception's."""
    if name in STANDARD.values():
        raise ValueError(
            f"the network named {name!r} is not the standard Inception, which alone is called so: rename it"
        )
    return name
