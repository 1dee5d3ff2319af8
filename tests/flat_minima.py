"""Training that ends where the loss is flat: such weights read better what they have never seen."""

from collections.abc import Sequence

import keras
import tensorflow as tf

RADIUS = 0.5
LEAST = 0.01  # added to each weight's size, or nothing would move those near zero


class Sharpened(keras.Sequential):
    """Each step follows the gradient at the worst of the weights nearby instead of at the weights (TensorFlow only).

    Near is what differs by a share of each weight: adaptive sharpness-aware minimisation, Kwon et al. 2021
    (arXiv:2102.11600), after Foret et al. 2021 (arXiv:2010.01412). A step takes twice as long.
    """

    def train_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One batch of pictures and targets; the metrics are those of the worst weights."""
        images, wanted = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(images, wanted, self(images, training=True))
        moves = worst_moves(self.trainable_variables, tape.gradient(loss, self.trainable_variables))
        for variable, move in zip(self.trainable_variables, moves, strict=True):
            variable.assign_add(move)
        metrics = super().train_step(data)
        for variable, move in zip(self.trainable_variables, moves, strict=True):
            variable.assign_sub(move)
        return metrics


def worst_moves(weights: Sequence[keras.Variable], gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The change of the weights that raises the loss most, RADIUS long when measured in shares of each weight."""
    sizes = [tf.abs(weight) + LEAST for weight in weights]
    steepest = [size * gradient for size, gradient in zip(sizes, gradients, strict=True)]
    length = tf.linalg.global_norm(steepest) + 1e-12
    return [RADIUS * size * part / length for size, part in zip(sizes, steepest, strict=True)]
