"""Learning from larger models: their answers on the same changed pictures are targets beside the labels.

Knowledge distillation, Hinton et al. 2015 (arXiv:1503.02531). In ``keras.ops``, so that every Keras backend can run it.
"""

from collections.abc import Sequence

import keras
from keras import ops

from utils import labels


class Teaching(keras.layers.Layer):
    """Passes the student's logits on; in training it adds the loss against the teachers' mean answer.

    The label loss behind it keeps its value, so that ``val_loss`` means the same with and without teachers, but less of
    its gradient comes back through here.

    Takes ``[pictures (N, H, W, C) float32 0..255, logits (N, nb_classes)]``. Teachers of 100 classes teach a student
    of 10, too: each tenth counts for the digits that its target names.

    Args:
        teachers: models from pixels to logits; they are not trained, and their weights are not part of this layer.
        share: how much their answer counts, 0..1; the labels get the rest.
        nb_classes: of the student.
        spread: ``LABEL_SPREAD`` of the student.
    """

    def __init__(self, teachers: Sequence[keras.Model], share: float, nb_classes: int, spread: float, **kwargs) -> None:
        super().__init__(**kwargs)
        self.share = share
        # Hidden in functions: a model that is an attribute would have its weights saved in every checkpoint.
        self.answers = [_answer(teacher, nb_classes, spread) for teacher in teachers]

    def call(self, inputs, training=False):
        images, logits = inputs
        if training:
            target = ops.stop_gradient(sum(answer(images) for answer in self.answers) / len(self.answers))
            self.add_loss(self.share * ops.mean(ops.categorical_crossentropy(target, logits, from_logits=True)))
            logits -= self.share * (logits - ops.stop_gradient(logits))
        return logits

    def compute_output_spec(self, inputs, training=False):
        return keras.KerasTensor(inputs[1].shape, inputs[1].dtype)


def _answer(teacher: keras.Model, nb_classes: int, spread: float):
    """The teacher's probabilities of the student's classes, as a function of pictures."""
    channels, known = teacher.input_shape[-1], teacher.output_shape[-1]
    to_student = None if known == nb_classes else labels.targets(nb_classes, spread)

    def answer(images):
        # A grey student's pictures serve a teacher that takes RGB.
        images = ops.repeat(images, channels // images.shape[-1], axis=-1)
        shares = ops.softmax(teacher(images, training=False))
        return shares if to_student is None else ops.matmul(shares, to_student)

    return answer
