"""The choice of a decoder for each of a data set's media, once; on a GPU by trial."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode.decoder import DecoderName, choose_decoder
from ivcl_fast.data.decode.interface import ChosenDecoder
from ivcl_fast.data.decode.media import VideoInfo, open_media
from ivcl_fast.errors import UserError

log = logging.getLogger(__name__)

TRIALS = 3
"""Number of media of a codec, of which a GPU has to decode one."""
TRIAL_SIZE = 32


def choose_decoders(
    media: Sequence[Media],
    infos: Mapping[str, VideoInfo],
    decoder: DecoderName,
    gpu: int | None = None,
) -> dict[str, ChosenDecoder]:
    """Choose a decoder for each of the media; logs each choice with the reason, once per codec.

    Only a trial shows what a GPU can decode: codecs differ between generations, containers may
    lack the driver's library for videos, and the driver may be too old for DALI. Where DALI fails
    on the GPU of this index, ``auto`` takes PyAV, and ``dali`` raises :class:`UserError`.
    """
    by_codec: dict[str, list[Media]] = {}
    choices: dict[str, tuple[ChosenDecoder, str]] = {}
    for one in media:
        if (info := infos.get(one.name)) is not None:
            choices[one.name] = choose_decoder(info, decoder)
            if choices[one.name][0] == "dali":
                by_codec.setdefault(info.codec, []).append(one)
    for codec, those in by_codec.items() if torch.cuda.is_available() else ():
        if reason := _dali_fails(those[:TRIALS], gpu):
            if decoder == "dali":
                raise UserError(
                    f"decoder: DALI cannot decode {codec} on this GPU ({reason}); accepted: auto, "
                    "pyav"
                )
            choices |= {
                one.name: ("pyav", f"DALI cannot decode it on this GPU ({reason})") for one in those
            }
    counts = Counter((infos[name].codec, *choice) for name, choice in choices.items())
    for (codec, name, reason), count in counts.items():
        log.info("decoder: %s for %d %s files, because %s", name, count, codec, reason)
    return {name: choice[0] for name, choice in choices.items()}


def _dali_fails(media: Sequence[Media], gpu: int | None) -> str | None:
    """Decode one frame of each of the media; return a reason in one line if none succeeds."""
    reason = None
    for one in media:
        try:
            from ivcl_fast.data.decode.dali import DALIDecoder

            with open_media(one) as opened:
                DALIDecoder(TRIAL_SIZE, gpu).decode_by_dali(opened, [0])
            return None
        except Exception as error:  # a library that does not fit the driver may raise anything
            said = str(error).rpartition("encountered:")[2].strip()  # after the pipeline's code
            reason = (said.splitlines() or [type(error).__name__])[0][:200]
    return reason
