"""Random changes of training pictures, on the batch and in ``keras.ops``, so that every Keras backend can run them."""

import math

import keras
import numpy as np
from keras import ops

from utils.settings import Settings

# Shares of the pictures that a change strikes; how hard, the AUGMENT_* parameters say.
SHARE_BLURRED = 0.3
SHARE_SHARPENED = 0.3
SHARE_GLARE = 0.2
MAX_RECTANGLE = 0.45  # longest side of a covering rectangle, share of the picture's


def random_state(seed: int, epoch: int, number: int = 0) -> np.ndarray:
    """State ``(2,)`` uint32 of a Keras seed generator, the ``number``-th of a network, at the start of an epoch.

    Mixed, since the second word is the generator's count of draws: with the epoch in it, each epoch would draw what the
    one before drew, one call later.
    """
    return np.random.SeedSequence([seed, epoch, number]).generate_state(2)


class Augmentation(keras.layers.Layer):
    """Draws new changes for every picture of a training batch; passes pictures through when not training.

    Takes ``(N, H, W, C)`` uint8, returns float32 0..255 of the same shape. The strengths are the ``AUGMENT_*``
    parameters. Changes of colour, light and contrast are strong and shifts are mild: on meters never seen that gained
    most, and a vertical shift would change the tenth.
    """

    def __init__(self, settings: Settings, **kwargs) -> None:
        super().__init__(**kwargs)
        self.strength = settings
        self.seed_generator = keras.random.SeedGenerator(settings.seed)

    def start_epoch(self, epoch: int) -> None:
        """Makes the random sequence a function of seed and epoch, so that a resumed run draws what it would have."""
        self.seed_generator.state.assign(random_state(self.strength.seed, epoch))

    def call(self, images, training=False):
        images = ops.cast(images, "float32")
        if not (training and self.strength.augment):
            return images
        images = self._covered(self._lit(self._focused(self._geometric(images))))
        if images.shape[-1] == 3:
            images = self._coloured(images)
        return self._exposed(images)

    def compute_output_spec(self, images, training=False):
        return keras.KerasTensor(images.shape, "float32")

    def _uniform(self, images, *shape: int, low: float = -1.0, high: float = 1.0):
        return keras.random.uniform((ops.shape(images)[0], *shape), low, high, seed=self.seed_generator)

    def _some(self, images, share: float):
        """1 for that share of the pictures, 0 for the others: ``(N, 1, 1, 1)``."""
        return ops.cast(self._uniform(images, 1, 1, 1, low=0.0) < share, "float32")

    def _geometric(self, images):
        height, width = images.shape[1:3]
        angle = self._uniform(images) * (self.strength.augment_rotation * math.pi / 180)
        scale_x = 1 + self._uniform(images) * self.strength.augment_zoom
        # Mostly one scale for both: a digit's own proportions vary less than its size.
        scale_y = scale_x * (1 + self._uniform(images) * self.strength.augment_zoom / 2)
        shear = self._uniform(images) * self.strength.augment_shear
        shift_x = self._uniform(images) * (self.strength.augment_shift_x * width)
        shift_y = self._uniform(images) * (self.strength.augment_shift_y * height)
        return _moved(images, angle, (scale_x, scale_y), shear, shift_x, shift_y)

    def _focused(self, images):
        """Blurred or sharpened: the difference to a 3x3 mean is taken away or added (unsharp masking)."""
        away = images - ops.average_pool(ops.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], "symmetric"), 3, 1)
        kind = self._uniform(images, 1, 1, 1, low=0.0)
        amount = self._uniform(images, 1, 1, 1, low=0.0)
        blur = ops.where(kind < SHARE_BLURRED, -amount * self.strength.augment_blur, 0.0)
        sharpen = ops.where(kind > 1 - SHARE_SHARPENED, 2 * amount * self.strength.augment_sharpen, 0.0)
        return images + (blur + sharpen) * away

    def _lit(self, images):
        """Light that falls off across the picture, a reflection: a spot on the glass or a streak along the wheel."""
        height, width = images.shape[1:3]
        y = ops.reshape(ops.linspace(-1.0, 1.0, height), (1, height, 1, 1))
        x = ops.reshape(ops.linspace(-1.0, 1.0, width), (1, 1, width, 1))
        slope = self._uniform(images, 1, 1, 2) * self.strength.augment_light
        images = images * (1 + slope[..., :1] * x + slope[..., 1:] * y)
        center = self._uniform(images, 1, 1, 2) * 1.2
        size_x = self._uniform(images, 1, 1, 1, low=0.15, high=0.9)
        size_y = ops.exp(self._uniform(images, 1, 1, 1, low=math.log(0.06), high=math.log(0.7))) * (width / height)
        distance = ops.square((x - center[..., :1]) / size_x) + ops.square((y - center[..., 1:]) / size_y)
        spot = ops.exp(-distance / 2)
        strength = self._uniform(images, 1, 1, 1, low=0.0) * (255 * self.strength.augment_glare)
        return images + self._some(images, SHARE_GLARE) * strength * spot

    def _covered(self, images):
        """A rectangle of one colour over a part of the picture (random erasing, Zhong et al. 2017)."""
        height, width = images.shape[1:3]
        center, half = self._uniform(images, 1, 1, 2), self._uniform(images, 1, 1, 2, low=0.1, high=MAX_RECTANGLE)
        y = ops.reshape(ops.linspace(-1.0, 1.0, height), (1, height, 1, 1))
        x = ops.reshape(ops.linspace(-1.0, 1.0, width), (1, 1, width, 1))
        inside = (ops.abs(x - center[..., :1]) < half[..., :1]) & (ops.abs(y - center[..., 1:]) < half[..., 1:])
        cover = ops.cast(inside, "float32") * self._some(images, self.strength.augment_cover)
        return images + cover * (self._uniform(images, 1, 1, images.shape[-1], low=0.0) * 255 - images)

    def _coloured(self, images):
        """Gains of the channels, channels exchanged, colour taken away."""
        images = images * (1 + self._uniform(images, 1, 1, 3) * self.strength.augment_color)
        order = ops.argsort(self._uniform(images, 3), axis=1)
        order = ops.where(self._uniform(images, 1, low=0.0) < self.strength.augment_swap, order, ops.arange(3))
        images = ops.matmul(images, ops.expand_dims(ops.one_hot(order, 3, axis=1), 1))
        grey = ops.mean(images, axis=-1, keepdims=True)
        return images + self._some(images, self.strength.augment_grey) * (grey - images)

    def _exposed(self, images):
        mean = ops.mean(images, axis=(1, 2, 3), keepdims=True)
        contrast = 1 + self._uniform(images, 1, 1, 1) * self.strength.augment_contrast
        brightness = self._uniform(images, 1, 1, 1) * (255 * self.strength.augment_brightness)
        images = (images - mean) * contrast + mean + brightness
        inverted = self._some(images, self.strength.augment_invert)
        images = images + inverted * (255 - 2 * images)
        deviation = self._uniform(images, 1, 1, 1, low=0.0) * (255 * self.strength.augment_noise)
        noise = keras.random.normal(ops.shape(images), seed=self.seed_generator)
        return ops.clip(images + deviation * noise, 0, 255)


class Changed(Augmentation):
    """The same in a network that only predicts."""

    def call(self, images, training=True):
        return super().call(images, training=True)


def shifted_up(images, rows):
    """Pictures ``(N, H, W, C)`` float32 moved up by ``rows`` (N,), parts of a row too; the border is repeated."""
    zero = ops.zeros_like(rows)
    return _moved(images, zero, (zero + 1, zero + 1), zero, zero, -rows)


def _moved(images, angle, scale, shear, shift_x, shift_y):
    height, width = images.shape[1:3]
    # Rows (a0 a1 a2 b0 b1 b2 c0 c1) map a point of the output to one of the input, turning about the centre.
    center_x, center_y = (width - 1) / 2, (height - 1) / 2
    a0, a1 = ops.cos(angle) * scale[0], (shear - ops.sin(angle)) * scale[0]
    b0, b1 = ops.sin(angle) * scale[1], ops.cos(angle) * scale[1]
    offset_x = center_x - a0 * center_x - a1 * center_y - shift_x
    offset_y = center_y - b0 * center_x - b1 * center_y - shift_y
    zero = ops.zeros_like(angle)
    transform = ops.stack([a0, a1, offset_x, b0, b1, offset_y, zero, zero], axis=1)
    return ops.image.affine_transform(images, transform, "bilinear", "nearest")
