"""Random affine augmentation: one matrix an image, for a warp that takes the place of the resize."""

import numpy as np


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

    def uniform(limit: float) -> np.ndarray:
        return generator.uniform(-limit, limit, samples)

    angle = sum((uniform(limit) for limit in rotation), np.zeros(samples))
    zoom, slant = 1 / (1 + uniform(scale)), uniform(shear)
    mirror = np.where(generator.random(samples) < flip, -1.0, 1.0)
    shift = np.stack([uniform(translation), uniform(translation)], axis=-1)

    cosine, sine = np.cos(angle), np.sin(angle)
    # Rotation · shear · zoom · mirror, about the centre, on a unit square.
    linear = np.stack(
        [
            np.stack([cosine * mirror, cosine * slant - sine], axis=-1),
            np.stack([sine * mirror, sine * slant + cosine], axis=-1),
        ],
        axis=-2,
    )
    linear *= zoom[:, None, None]
    offset = 0.5 + shift - linear.sum(axis=-1) * 0.5
    sides = np.array(shape[::-1], dtype=np.float64)
    result = np.empty((samples, 2, 3), dtype=np.float32)
    result[:, :, :2] = linear * (sides[:, None] / size)
    result[:, :, 2] = offset * sides
    return result
