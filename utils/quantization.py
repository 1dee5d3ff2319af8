"""Which files a run writes: the flags of ``parameters.py`` and an architecture's traits make one mode."""

import logging
from dataclasses import dataclass

from utils.settings import Settings, SettingsError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuantizationMode:
    """What is exported: ``label`` goes into the run's name, ``int8`` says whether a quantised TFLite file is due."""

    label: str
    int8: bool


def check(settings: Settings) -> None:
    """Refuses flags whose export does not exist yet.

    Raises:
        SettingsError: names the flag.
    """
    for field in ("use_qat", "esp_dl_quantize"):
        if getattr(settings, field):
            raise SettingsError(f"{field.upper()} = True: not built yet, set it to False")


def resolve(settings: Settings, architecture: str, quantizable: bool) -> QuantizationMode:
    """Mode of one run; an architecture that is not quantizable switches the flags off for itself, with a log line."""
    if settings.quantize_model and not quantizable:
        log.info("%s is never quantised: QUANTIZE_MODEL does not apply to it", architecture)
    int8 = settings.quantize_model and quantizable
    return QuantizationMode("PTQ" if int8 else "FLOAT", int8)
