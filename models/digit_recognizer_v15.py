"""The best below 80 KB: depth instead of width, since meters never seen gain most from more layers."""

import keras

from models import _blocks

PURPOSE = "best below 80 KB; plain layers for any firmware"


def build(input_shape: tuple[int, int, int], nb_classes: int) -> keras.Model:
    """3x3 convolutions 12-16 | 24-24-24 | 32-32-32 | 40, pooled at each bar."""
    image, x = _blocks.image_input(input_shape)
    x = _blocks.stages(x, ((12, 16), (24, 24, 24), (32, 32, 32), (40,)))
    return keras.Model(image, _blocks.flat_logits(x, nb_classes), name="digit_recognizer_v15")
