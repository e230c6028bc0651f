"""What a bundle of given files takes: the shape of its input, whether that is a picture, and how it is normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnx import TensorProto

from export.existing.file_input import dtype_of, is_channels_last
from export.existing.given_file import FLOATS, GivenFile
from export.existing.options import BundleOptions
from export.existing.samples import Data
from sensai_serve.errors import InputError, ModelError
from sensai_serve.preprocess import MODES, ImageSpec, InputSpec, Normalisation

PIXELS = 1 / 255
_AS_THEY_ARE = Normalisation()
_COMMON = (
    Normalisation(scale=PIXELS),
    Normalisation(),
    Normalisation(scale=2 * PIXELS, mean=(1.0,)),
    Normalisation(scale=PIXELS, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
)
"""How networks commonly want the pixels of pictures: 0 to 1, 0 to 255, -1 to 1, by the moments of ImageNet."""


def input_spec(files: Sequence[GivenFile], own: Sequence[int], data: Data | None, options: BundleOptions) -> InputSpec:
    """The bundle's input, its normalisation aside.

    Args:
        files: the given files.
        own: shape of one input of the first.
        data: labelled data; None where there is none.
        options: what the user says.

    Raises:
        InputError: what the user says does not fit.
        ModelError: some files take whole numbers and others do not.
    """
    whole = {given.element_type not in FLOATS: given.name for given in files}
    if len(whole) > 1:
        raise ModelError(
            f"{whole[True]} takes whole numbers and {whole[False]} does not, expected all to take the same"
        )
    last = is_channels_last(own, options.layout)
    shape = (own[2], own[0], own[1]) if last else tuple(own)
    mode = _mode(shape, files, data, options)
    if mode is None:
        return InputSpec(shape=data.spec.shape if data else tuple(own), dtype=dtype_of(files, options))
    if data is not None:
        shape = data.spec.shape
    if len(shape) != 3 or shape[0] != MODES[mode]:
        raise InputError(f"{files[0].name} takes {list(own)} for one input, expected pictures of mode {mode}")
    image = ImageSpec(mode=mode, resize=(shape[1], shape[2]))  # type: ignore[arg-type]
    if data is not None and data.spec.image is not None:
        image = data.spec.image
    resize, crop = options.resize, options.crop
    if resize is not None:
        image = replace(image, resize=resize[0] if len(resize) == 1 else (resize[0], resize[1]))
    if crop is not None:
        image = replace(image, crop=(crop[0], crop[1]))
    elif resize is not None and len(resize) == 1:
        image = replace(image, crop=(shape[1], shape[2]))
    return InputSpec(shape=shape, image=image, dtype=dtype_of(files, options))


def normalisations(
    files: Sequence[GivenFile], spec: InputSpec, data: Data | None, options: BundleOptions
) -> list[Normalisation]:
    """How raw numbers may become what the files take; where there are several, labelled data has to show which.

    Raises:
        InputError: pictures, of which nobody says it, and no labelled data.
    """
    if options.normalised:
        pixels = spec.image is not None and options.scale is None
        scale = PIXELS if pixels else 1.0 if options.scale is None else options.scale
        return [Normalisation(scale, options.mean or (0.0,), options.std or (1.0,))]
    if files[0].element_type not in FLOATS:
        return [_AS_THEY_ARE]
    if data is not None:
        if data.said:
            return [data.spec.normalisation]
        own = data.spec.normalisation
        candidates = [own, *_COMMON] if spec.image is not None else [_AS_THEY_ARE, own]
        fitting = [one for one in candidates if all(len(each) in (1, spec.shape[0]) for each in (one.mean, one.std))]
        return list(dict.fromkeys(fitting))  # each once
    if spec.image is not None:
        raise InputError(
            f"{files[0].name} takes pictures, and nothing says how they are normalised: expected --mean and --std, or "
            "--scale (1 for pixels of 0 to 255, 0.00392157 for 0 to 1), or labelled data with --data"
        )
    return [_AS_THEY_ARE]


def _mode(shape: Sequence[int], files: Sequence[GivenFile], data: Data | None, options: BundleOptions) -> str | None:
    """The mode of the pictures that the bundle takes; None where it takes none."""
    if options.image != "auto":
        return None if options.image == "no" else options.image
    if data is not None:
        return data.spec.image.mode if data.spec.image is not None else None
    picture = len(shape) == 3 and shape[0] in MODES.values()
    bytes_ = files[0].element_type == TensorProto.UINT8
    said = options.normalised or options.resize is not None or options.crop is not None
    if not picture or not (bytes_ or said):
        return None
    return "RGB" if shape[0] == MODES["RGB"] else "L"
