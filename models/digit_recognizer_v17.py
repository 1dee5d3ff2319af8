"""Ghost features: many channels of a network resemble each other, so half of them are made cheaply from the rest."""

import keras

from models import _blocks

PURPOSE = "v15's depth at six tenths of its size; ghost features"


def build(input_shape: tuple[int, int, int], nb_classes: int) -> keras.Model:
    """A 3x3 stem of 16, then ghost modules 24-24 | 32-32-32 | 32-32, pooled before each stage and at the end."""
    image, x = _blocks.image_input(input_shape)
    x = _blocks.stages(x, ((16,),))
    x = _blocks.stages(x, ((24, 24), (32, 32, 32), (32, 32)), _blocks.ghost)
    return keras.Model(image, _blocks.flat_logits(x, nb_classes), name="digit_recognizer_v17")
