"""The smallest: with four poolings only two places are left, so that the last layer needs few weights."""

import keras

from models import _blocks

PURPOSE = "smallest file, below 20 KB; plain layers for any firmware"


def build(input_shape: tuple[int, int, int], nb_classes: int) -> keras.Model:
    """3x3 convolutions 8-8 | 12-12 | 16-16 | 16, pooled at each bar, and no hidden dense layer."""
    image, x = _blocks.image_input(input_shape)
    x = _blocks.stages(x, ((8, 8), (12, 12), (16, 16), (16,)))
    return keras.Model(image, _blocks.flat_logits(x, nb_classes), name="digit_recognizer_v6")
