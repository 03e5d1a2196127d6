"""The preprocessing of loaders that take a function of one image: OpenCV, as in most projects."""

import numpy as np

from .work import Missing, Work

try:
    import cv2
except ImportError:
    cv2 = None


class Preprocess:
    """(H, W) uint8 and its index → (1, S, S) float32: equalized, resized or warped, normalized."""

    def __init__(self, work: Work) -> None:
        if cv2 is None:
            raise Missing("OpenCV is not installed; pip install -e '.[peers]'.")
        self._size = (work.size, work.size)
        self._scale, self._shift = np.float32(1 / (255 * work.std)), np.float32(-work.mean / work.std)
        self._matrices = None if work.matrices is None else _of_pixel_centres(work.matrices)

    def __call__(self, image: np.ndarray, index: int) -> np.ndarray:
        cv2.setNumThreads(0)  # parallel are the images
        image = cv2.equalizeHist(image)
        if self._matrices is None:
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_LINEAR)
        else:
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            image = cv2.warpAffine(image, self._matrices[index], self._size, flags=flags)
        return (image * self._scale + self._shift)[None]


def _of_pixel_centres(matrices: np.ndarray) -> np.ndarray:
    """OpenCV counts from the centre of the first pixel, `pipelines.affine` from its corner."""
    matrices = matrices.copy()
    matrices[:, :, 2] += matrices[:, :, :2].sum(2) / 2 - 0.5
    return matrices
