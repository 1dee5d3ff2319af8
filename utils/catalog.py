"""All architectures side by side: how large, how much work, what for."""

import keras

import models
from utils import complexity, report
from utils.settings import Settings


def table(settings: Settings) -> str:
    """Text table of every architecture at the settings' input and number of classes; nothing is converted for it.

    Architectures that can't be built for such pictures have "-" in their row.
    """
    rows = [["architecture", "for", "parameters", "multiply-accumulates", "int8 KB, about"]]
    for name in models.available():
        architecture = models.get(name)
        try:
            # Without values: JAX compiles the drawing of each size of weights, which takes most of a minute for all.
            with keras.StatelessScope(initialize_variables=False):
                model = architecture.build(settings.input_shape, settings.nb_classes)
        except models.BuildError:
            rows.append([name, architecture.purpose, "-", "-", "-"])
            continue
        size = f"{complexity.file_bytes(model) / 1024:.0f}" if architecture.quantizable else "-"
        numbers = (f"{number(model):,}" for number in (complexity.parameters, complexity.multiply_accumulates))
        rows.append([name, architecture.purpose, *numbers, size])
    height, width, channels = settings.input_shape
    asked = f"{settings.nb_classes} classes, input {width} x {height}, {'RGB' if channels == 3 else 'grey'}"
    return f"{report.table(rows, texts=2)}\n\n{asked}"
