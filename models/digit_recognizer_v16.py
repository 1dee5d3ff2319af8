"""Inverted residuals: narrow between the blocks, wide only inside them where the depthwise filters work."""

import keras

from models import _blocks

PURPOSE = "deep and narrow; inverted residuals with shortcuts"


def build(input_shape: tuple[int, int, int], nb_classes: int) -> keras.Model:
    """A 3x3 stem of 12, then inverted residuals 24-24 | 32-32-32 | 32-32 widened twofold; four poolings."""
    image, x = _blocks.image_input(input_shape)
    x = _blocks.stages(x, ((12,),))
    x = _blocks.stages(x, ((24, 24), (32, 32, 32), (32, 32)), _blocks.inverted_residual)
    return keras.Model(image, _blocks.flat_logits(x, nb_classes), name="digit_recognizer_v16")
