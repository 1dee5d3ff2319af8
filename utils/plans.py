"""What fine-tuning is to learn and how: one value that the doors make and the library goes by."""

from dataclasses import dataclass

STRATEGIES = ("full", "last_layer", "feature_extractor")
NEW_WEIGHT = 300.0  # of a new picture: two fill the tenth of a batch that is theirs


@dataclass(frozen=True)
class Plan:
    """How to fine-tune.

    ``new`` names the sources of the new meter, ``weight`` how often one of their pictures counts against
    ``fine_tuning.BANK`` old ones; of these the share ``data_ratio`` comes as it is, ``augmented_ratio`` much changed.
    An epoch is ``fine_tuning.STEPS_PER_EPOCH`` batches.
    """

    strategy: str = "full"
    new: tuple[str, ...] = ()
    weight: float = NEW_WEIGHT
    data_ratio: float = 0.1
    augmented_ratio: float = 0.9
    learning_rate: float = 0.0005
    epochs: int = 8
