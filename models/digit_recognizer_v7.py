"""Thin while the picture is large, three convolutions deep where it is small and they cost little."""

import keras

from models import _blocks

PURPOSE = "best below 40 KB, at a third of v15's work; plain layers for any firmware"


def build(input_shape: tuple[int, int, int], nb_classes: int) -> keras.Model:
    """3x3 convolutions 8-10 | 14-16 | 18-20-20 | 20-24, pooled at each bar."""
    image, x = _blocks.image_input(input_shape)
    x = _blocks.stages(x, ((8, 10), (14, 16), (18, 20, 20), (20, 24)))
    return keras.Model(image, _blocks.flat_logits(x, nb_classes), name="digit_recognizer_v7")
