"""Pretrained weights from the Hugging Face hub; without a network those of its cache, or one line at once."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.utils import get_session

from kdbench.errors import KDBenchError

#: Seconds for the hub to answer at all; the hub's own retries take close to a minute.
PATIENCE = 5.0


@functools.cache
def reachable() -> bool:
    """Whether the hub answers; asked once per process."""
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # of whatever library speaks HTTP in this version
        return False
    return True


@contextmanager
def fetched(name: str) -> Iterator[None]:
    """Lets timm fetch the weights of a model within, offline where the hub does not answer.

    Raises:
        KDBenchError: There are none, or they are neither in the cache nor to be had.
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not reachable()
    try:
        yield
    except (OSError, RuntimeError) as error:
        if constants.HF_HUB_OFFLINE:
            raise KDBenchError(
                f"model_name={name} pretrained=true: there is no network to {constants.ENDPOINT} and no copy in "
                f"{constants.HF_HUB_CACHE}: leave pretrained out, or give init_from=FILE"
            ) from None
        said = " ".join(str(error).split())[:200]
        raise KDBenchError(f"model_name={name} pretrained=true: its weights cannot be had: {said}") from None
    finally:
        constants.HF_HUB_OFFLINE = before
