"""Which files a run writes: the flags of ``parameters.py`` and an architecture's traits make one mode."""

import logging
from dataclasses import dataclass, replace

from utils.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuantizationMode:
    """What is trained and exported.

    ``label`` goes into the run's name; ``int8``: a quantised TFLite file; ``qat``: quantisation-aware training, the
    better of the states before and after it in all files, the other beside them for comparison; ``espdl``: ``.espdl``
    files; ``note``: what was corrected, or "".
    """

    label: str
    int8: bool = False
    qat: bool = False
    espdl: bool = False
    note: str = ""


FLOAT = QuantizationMode("FLOAT")
# QUANTIZE_MODEL, USE_QAT, ESP_DL_QUANTIZE -> mode; without the first the other two have nothing to act on.
MODES = {
    (False, False, False): FLOAT,
    (False, True, False): replace(FLOAT, note="USE_QAT is ignored: QUANTIZE_MODEL is False"),
    (False, False, True): replace(FLOAT, note="ESP_DL_QUANTIZE is ignored: QUANTIZE_MODEL is False"),
    (False, True, True): replace(FLOAT, note="USE_QAT and ESP_DL_QUANTIZE are ignored: QUANTIZE_MODEL is False"),
    (True, False, False): QuantizationMode("PTQ", int8=True),
    (True, True, False): QuantizationMode("QAT", int8=True, qat=True),
    (True, False, True): QuantizationMode("PTQ", int8=True, espdl=True),
    (True, True, True): QuantizationMode("QAT", int8=True, qat=True, espdl=True),
}


def resolve(settings: Settings, architecture: str, quantizable: bool) -> QuantizationMode:
    """Mode of one run; an architecture that is not quantizable switches all three flags off for itself alone.

    What is corrected is logged in one line and kept in the mode's ``note``.
    """
    flags = (settings.quantize_model, settings.use_qat, settings.esp_dl_quantize)
    mode = MODES[flags]
    if any(flags) and not quantizable:
        mode = replace(FLOAT, note=f"{architecture} is never quantised: the quantisation flags do not apply to it")
    if mode.note:
        log.info("%s", mode.note)
    return mode
