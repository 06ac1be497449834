"""The channels of a batch of different panels: which are there, and how a small panel fills a fixed number."""

from __future__ import annotations

import torch
from torch import Tensor

from slideloom.errors import SlideError, SlideloomError

__all__ = ["checked_present", "replicate", "too_many_channels"]


def checked_present(images: Tensor, present: Tensor | None) -> Tensor | None:
    """Refuse images without channels and masks that do not fit them.

    Parameters
    ----------
    images : Tensor
        (n, c, H, W).
    present : Tensor, optional
        (n, c) bool: False for channels that pad.

    Returns
    -------
    Tensor or None
        The mask; None where every channel is there, so that who asks need not look again.

    Raises
    ------
    SlideloomError
        ``adapter_input``: images of another shape or without pixels or channels; a mask of another shape or type; an
        image none of whose channels is there.
    """
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise _refused(f"images of shape {tuple(images.shape)}", "(n, c, H, W), at least one channel and one pixel")
    if present is None:
        return None
    if present.shape != images.shape[:2] or present.dtype != torch.bool:
        raise _refused(
            f"a mask of shape {tuple(present.shape)} of {present.dtype}", f"{tuple(images.shape[:2])} of torch.bool"
        )
    if bool(present.all()):
        return None
    empty = (~present.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise _refused(f"no channel of image {empty[0]} of the batch is there", "at least one")
    return present


def replicate(images: Tensor, to: int, present: Tensor | None = None) -> Tensor:
    """Fill a number of channels with the channels of each image, over and over in their order.

    A panel of 2 becomes a, b, a, b, …; where the number is no multiple of the panel's size, the last round is cut.

    Parameters
    ----------
    images : Tensor
        (n, c, H, W).
    to : int
        Channels wanted; at least as many as any of the images has.
    present : Tensor, optional
        (n, c) bool: channels that pad, False, are passed over, wherever they stand. All are there when left out.

    Returns
    -------
    Tensor
        (n, to, H, W); the same tensor where nothing is to be filled.

    Raises
    ------
    SlideloomError
        ``adapter_input``: see :func:`checked_present`. ``adapter_channels``: an image with more channels than wanted.
    """
    present = checked_present(images, present)
    channels = images.shape[1]
    most = channels if present is None else int(present.sum(dim=1).max())
    if most > to:
        raise too_many_channels(most, to, "adapter")
    places = torch.arange(to, device=images.device)
    if present is None:
        return images if channels == to else images[:, places % channels]
    # Channels that are there come first, in their order; then each image's own number goes round.
    order = torch.argsort((~present).byte(), dim=1, stable=True)
    chosen = order.gather(1, places % present.sum(dim=1, keepdim=True))
    return images[torch.arange(len(images), device=images.device)[:, None], chosen]


def too_many_channels(count: int, most: int, where: str) -> SlideError:
    """A panel is longer than an adapter reads.

    Parameters
    ----------
    count, most : int
        Its channels, and those that the adapter reads at most.
    where : str
        The slide, where it is known.
    """
    return SlideError(
        f"an image of {count} channels",
        where=where,
        expected=f"at most {most}",
        hint="Name fewer markers in the encoder's 'markers', or give an adapter that is trained more channels "
        "(in_channels; of pass_through out_channels)",
        code="adapter_channels",
    )


def _refused(what: str, expected: str) -> SlideloomError:
    return SlideloomError(what, where="adapter", expected=expected, code="adapter_input")
