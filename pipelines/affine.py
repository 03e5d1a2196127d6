"""Random affine augmentation: one matrix an image, for a warp that takes the place of the resize."""

import numpy as np
from numba import njit


def matrices(
    generator: np.random.Generator,
    samples: int,
    shape: tuple[int, int],
    size: int,
    *,
    rotation: tuple[float, ...],
    scale: float,
    shear: float,
    translation: float,
    flip: float,
) -> np.ndarray:
    """(samples, 2, 3) float32: where in the (H, W) input each point of the (size, size) output comes from.

    Coordinates are x, y in pixels from the corner of the first pixel (DALI's `warp_affine`), so the centre of
    pixel u is u + 0.5. Every parameter is drawn from ±its argument: `rotation` in radians (several angles are
    drawn apart and added), `scale` about 1, `shear` as the tangent, `translation` as a share of the side;
    `flip` is the probability of a left-right flip.
    """
    angles, others = generator.random((len(rotation), samples)), generator.random((5, samples))
    angle = sum((2 * limit * draws - limit for limit, draws in zip(rotation, angles, strict=True)), np.zeros(samples))
    result = np.empty((samples, 2, 3), np.float32)
    # numpy's sine and cosine: numba's could differ in the last bit.
    _compose(np.cos(angle), np.sin(angle), others, scale, shear, flip, translation, *shape, size, result)
    return result


@njit(nogil=True, cache=True)
def _compose(cosines, sines, draws, scale, shear, flip, translation, height, width, size, out):
    """Rotation · shear · zoom · mirror, about the centre, on a unit square; `draws` (5, samples) are 0 … 1."""
    for i in range(out.shape[0]):
        cosine, sine = cosines[i], sines[i]
        zoom, slant = 1 / (1 + (2 * scale * draws[0, i] - scale)), 2 * shear * draws[1, i] - shear
        mirror = -1.0 if draws[2, i] < flip else 1.0
        xx, xy = cosine * mirror * zoom, (cosine * slant - sine) * zoom
        yx, yy = sine * mirror * zoom, (sine * slant + cosine) * zoom
        out[i, 0, 0] = xx * (width / size)
        out[i, 0, 1] = xy * (width / size)
        out[i, 1, 0] = yx * (height / size)
        out[i, 1, 1] = yy * (height / size)
        shift_x, shift_y = 2 * translation * draws[3, i] - translation, 2 * translation * draws[4, i] - translation
        out[i, 0, 2] = (0.5 + shift_x - (xx + xy) * 0.5) * width
        out[i, 1, 2] = (0.5 + shift_y - (yx + yy) * 0.5) * height
