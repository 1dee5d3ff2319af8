"""Depthwise separable convolutions: each filter looks at one channel, cheap 1x1 convolutions mix them."""

import keras

from models import _blocks

PURPOSE = "fewest multiply-accumulates; separable convolutions"


def build(input_shape: tuple[int, int, int], nb_classes: int) -> keras.Model:
    """A 3x3 stem of 12, then separable blocks 24-24 | 32-32 | 40-40, pooled before each stage and at the end."""
    image, x = _blocks.image_input(input_shape)
    x = _blocks.stages(x, ((12,),))
    x = _blocks.stages(x, ((24, 24), (32, 32), (40, 40)), _blocks.separable)
    return keras.Model(image, _blocks.flat_logits(x, nb_classes), name="digit_recognizer_v3")
