"""Random changes of training pictures, on the batch and in ``keras.ops``, so that every Keras backend can run them."""

import math

import keras
from keras import ops

from utils.settings import Settings


class Augmentation(keras.layers.Layer):
    """Draws new changes for every picture of a training batch; passes pictures through when not training.

    Takes ``(N, H, W, C)`` uint8, returns float32 0..255 of the same shape. The strengths are the ``AUGMENT_*``
    parameters. Colour and contrast changes are strong and shifts are mild: on meters never seen that gained most, and
    a vertical shift would change the tenth.
    """

    def __init__(self, settings: Settings, **kwargs) -> None:
        super().__init__(**kwargs)
        self.strength = settings
        self.seed_generator = keras.random.SeedGenerator(settings.seed)

    def start_epoch(self, epoch: int) -> None:
        """Makes the random sequence a function of seed and epoch, so that a resumed run draws what it would have."""
        self.seed_generator.state.assign(ops.convert_to_tensor([self.strength.seed, epoch], dtype="uint32"))

    def call(self, images, training=False):
        images = ops.cast(images, "float32")
        if not (training and self.strength.augment):
            return images
        return self._photometric(self._geometric(images))

    def compute_output_spec(self, images, training=False):
        return keras.KerasTensor(images.shape, "float32")

    def _uniform(self, images, *shape: int, low: float = -1.0, high: float = 1.0):
        return keras.random.uniform((ops.shape(images)[0], *shape), low, high, seed=self.seed_generator)

    def _geometric(self, images):
        height, width = images.shape[1:3]
        angle = self._uniform(images) * (self.strength.augment_rotation * math.pi / 180)
        scale = 1 + self._uniform(images) * self.strength.augment_zoom
        shift_x = self._uniform(images) * (self.strength.augment_shift_x * width)
        shift_y = self._uniform(images) * (self.strength.augment_shift_y * height)
        return _moved(images, angle, scale, shift_x, shift_y)

    def _photometric(self, images):
        mean = ops.mean(images, axis=(1, 2, 3), keepdims=True)
        contrast = 1 + self._uniform(images, 1, 1, 1) * self.strength.augment_contrast
        brightness = self._uniform(images, 1, 1, 1) * (255 * self.strength.augment_brightness)
        images = (images - mean) * contrast + mean + brightness
        if images.shape[-1] == 3:
            images = images * (1 + self._uniform(images, 1, 1, 3) * self.strength.augment_color)
        inverted = self._uniform(images, 1, 1, 1, low=0.0) < self.strength.augment_invert
        images = ops.where(inverted, 255 - images, images)
        deviation = self._uniform(images, 1, 1, 1, low=0.0) * (255 * self.strength.augment_noise)
        noise = keras.random.normal(ops.shape(images), seed=self.seed_generator)
        return ops.clip(images + deviation * noise, 0, 255)


def shifted_up(images, rows):
    """Pictures ``(N, H, W, C)`` float32 moved up by ``rows`` (N,), parts of a row too; the border is repeated."""
    zero = ops.zeros_like(rows)
    return _moved(images, zero, zero + 1, zero, -rows)


def _moved(images, angle, scale, shift_x, shift_y):
    transform = _transform(angle, scale, shift_x, shift_y, *images.shape[1:3])
    return ops.image.affine_transform(images, transform, "bilinear", "nearest")


def _transform(angle, scale, shift_x, shift_y, height: int, width: int):
    # Rows (a0 a1 a2 b0 b1 b2 c0 c1) map a point of the output to one of the input, turning about the centre.
    center_x, center_y = (width - 1) / 2, (height - 1) / 2
    cos, sin = ops.cos(angle) * scale, ops.sin(angle) * scale
    offset_x = center_x - cos * center_x + sin * center_y - shift_x
    offset_y = center_y - sin * center_x - cos * center_y - shift_y
    zero = ops.zeros_like(angle)
    return ops.stack([cos, -sin, offset_x, sin, cos, offset_y, zero, zero], axis=1)
