"""Published VirTues weights into our layers, every key accounted for.

The file's own names are written out for a model of the sizes that it seems to hold, checked against the file, and
translated. Query, key and value become one projection, their rows reordered for
:class:`~slideloom.encoders.virtues.blocks.Block`; tables of rotary positions are checked and not kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slideloom.encoders.checkpoints.weights import Weights, load_strict
from slideloom.encoders.virtues.blocks import rope_turns
from slideloom.encoders.virtues.decoder import MAEDecoder
from slideloom.encoders.virtues.net import VirTuesNet
from slideloom.encoders.virtues.schemes import TABLE, VirTuesFile, alternating, describe
from slideloom.errors import SlideloomError

__all__ = ["LoadedVirTues", "load_virtues", "published_state"]


@dataclass(frozen=True)
class LoadedVirTues:
    """A model with its weights, in evaluation mode, frozen, on the CPU.

    Attributes
    ----------
    net : VirTuesNet
        The encoder.
    decoder : MAEDecoder or None
        The training decoder, if it was asked for and the file has it.
    file : VirTuesFile
        How the file names things.
    notes : tuple of str
        What was left aside.
    """

    net: VirTuesNet
    decoder: MAEDecoder | None
    file: VirTuesFile
    notes: tuple[str, ...]


def load_virtues(weights: Weights, where: str, *, pattern: str | None = None, decoder: bool = False) -> LoadedVirTues:
    """Build the model that a file holds.

    Parameters
    ----------
    weights : Weights
        Of the file.
    where : str
        The encoder's name, for errors.
    pattern : str, optional
        The blocks' kinds when they are known; else they are told by the tables of rotary positions, which only
        attention over space has.
    decoder : bool
        Build the training decoder, too. It is checked either way.

    Raises
    ------
    SlideloomError
        ``checkpoint_keys``: keys are missing, unexpected or misshapen, which the message lists by the file's own
        names, or sizes contradict each other. ``checkpoint_rope``: tables of rotary positions that are not VirTues'.
    """
    file = describe(weights.tensors, where, pattern)
    with torch.device("meta"):
        net = VirTuesNet(file.architecture)
        tail = MAEDecoder(file.decoder) if file.decoder else None
    shelf = _shelf(published_state(file, net, tail))
    load_strict(shelf, weights, where)
    held = {key.removeprefix(file.prefix): value for key, value in shelf.state_dict().items()}
    _check_tables(file, weights, where)
    _fill(net, _encoder_links(file), held)
    notes: list[str] = []
    if tail is not None and decoder:
        _fill(tail, _decoder_links(file), held)
        tail.eval().requires_grad_(False)
    elif tail is not None:
        count = sum(key.startswith(f"{file.scheme.decoder}.") for key in held)
        notes.append(f"{count} weights of the decoder that VirTues was trained with were left aside")
    if file.he:
        notes.append("weights for an H&E row were left aside")
    if file.architecture.pattern != alternating(file.architecture.depth):
        notes.append(f"its blocks are {file.architecture.pattern}, not hv in turns")
    return LoadedVirTues(net.eval().requires_grad_(False), tail if decoder else None, file, tuple(notes))


def published_state(file: VirTuesFile, net: VirTuesNet, decoder: MAEDecoder | None = None) -> dict[str, Tensor]:
    """A model's weights under the names, and in the order, that a file has.

    Parameters
    ----------
    file : VirTuesFile
        The names.
    net : VirTuesNet
        May live on the meta device: then this tells shapes.
    decoder : MAEDecoder, optional
        Where ``file`` has one.

    Returns
    -------
    dict of str to Tensor
        Tables of rotary positions included.
    """
    state = dict(_export(file, net, _encoder_links(file)))
    if file.he:
        width, area = file.architecture.width, file.architecture.patch_px**2
        empty = net.patch_summary_token.detach().new_zeros
        state[f"{file.prefix}encoder.he_patch_encoder.weight"] = empty(width, 3 * area)
        state[f"{file.prefix}encoder.he_patch_encoder.bias"] = empty(width)
        state[f"{file.prefix}encoder.he_marker"] = empty(width)
    if decoder is not None:
        state |= _export(file, decoder, _decoder_links(file))
    return state


@dataclass(frozen=True)
class _Link:
    """A key of a file and where it goes: a parameter of ours, or a third of one; ``turned``: rows are reordered."""

    key: str
    own: str
    third: int | None = None
    turned: bool = False
    table: bool = False


def _encoder_links(file: VirTuesFile) -> list[_Link]:
    links = [_Link(f"encoder.{name}", name) for name in ("patch_summary_token", "masked_token")]
    if file.architecture.registers:
        links.append(_Link("encoder.register_tokens", "register_tokens"))
    links += _pair(file.scheme.patches, "patch_encoder") + _pair(file.scheme.markers, "marker_encoder")
    if file.architecture.final_norm:
        links += _pair("encoder.layer_norm", "norm")
    for index, (name, letter) in enumerate(zip(file.blocks, file.architecture.pattern, strict=True)):
        links += _block_links(name, f"blocks.{index}", letter == "h", index in file.turning)
    return links


def _decoder_links(file: VirTuesFile) -> list[_Link]:
    links = _pair(file.scheme.head, "head")
    for index, name in enumerate(file.decoder_blocks):
        links += _block_links(name, f"blocks.{index}", True, index in file.decoder_turning)
    if file.decoder and file.decoder.final_norm:
        links += _pair(f"{file.scheme.decoder}.layer_norm", "norm")
    return links


def _pair(key: str, own: str, third: int | None = None, turned: bool = False) -> list[_Link]:
    return [_Link(f"{key}.{end}", f"{own}.{end}", third, turned) for end in ("weight", "bias")]


def _block_links(name: str, own: str, over_space: bool, tables: bool) -> list[_Link]:
    attention = f"{name}.multi_head_attention"
    links = []
    for third, letter in enumerate("qkv"):
        links += _pair(f"{attention}.W_{letter}", f"{own}.qkv", third, over_space and letter != "v")
    links += _pair(f"{attention}.W_o", f"{own}.out")
    if tables:
        links += [_Link(f"{name}.{TABLE.format(part)}", "", table=True) for part in ("sin", "cos")]
    for key, part in (("feedforward.0", "inner"), ("feedforward.3", "outer")):
        links += _pair(f"{name}.{key}", f"{own}.{part}")
    for number in (1, 2):
        links += _pair(f"{name}.layernorm{number}", f"{own}.norm{number}")
    return links


def _neighbours(head_dim: int) -> Tensor:
    """Where each of our rows of a head's query or key stands in a file: there, turned pairs are a quarter apart."""
    quarter = head_dim // 4
    return torch.arange(head_dim).view(2, 2, quarter).transpose(1, 2).flatten()


def _reorder(rows: Tensor, heads: int, order: Tensor) -> Tensor:
    grouped: Tensor = rows.view(heads, -1, *rows.shape[1:])
    return grouped[:, order.to(rows.device)].flatten(0, 1)


def _export(file: VirTuesFile, module: VirTuesNet | MAEDecoder, links: Iterable[_Link]) -> Iterator[tuple[str, Tensor]]:
    own = module.state_dict()
    sizes = module.architecture
    head_dim = sizes.width // sizes.heads
    back = _neighbours(head_dim).argsort()
    device = next(module.parameters()).device
    tables = {end: table.to(device) for end, table in _tables(file.rope_rows, head_dim).items()}
    for link in links:
        if link.table:
            yield file.prefix + link.key, tables[link.key.rpartition(".")[2]]
            continue
        value = own[link.own] if link.third is None else own[link.own].chunk(3)[link.third]
        yield file.prefix + link.key, _reorder(value, sizes.heads, back) if link.turned else value


def _tables(rows: int, head_dim: int) -> dict[str, Tensor]:
    """Sine and cosine of the rotary positions as the files hold them: (rows, head_dim / 2), halves equal."""
    index = torch.arange(rows)
    turns = rope_turns(index, torch.zeros_like(index), head_dim)[:, : head_dim // 4]
    return {"sin": turns.imag.repeat(1, 2), "cos": turns.real.repeat(1, 2)}


def _check_tables(file: VirTuesFile, weights: Weights, where: str) -> None:
    """Tables of rotary positions are not kept; they must be those that are worked out here."""
    known: dict[int, dict[str, Tensor]] = {}
    for link in _encoder_links(file) + _decoder_links(file):
        if not link.table:
            continue
        given = weights.tensors[file.prefix + link.key]
        head_dim = 2 * given.shape[1]
        tables = known.setdefault(head_dim, _tables(file.rope_rows, head_dim))
        worst = float((given.float() - tables[link.key.rpartition(".")[2]]).abs().max())
        # Angles reach a thousand: float32 has them to 1e-4. NaN compares false.
        if not worst <= max(1e-3, torch.finfo(given.dtype).eps):
            raise SlideloomError(
                f"{weights.path}: {file.prefix}{link.key} differs by up to {worst:.2g}",
                where=where,
                expected=f"rotary positions of base 10000 for heads of {head_dim}",
                hint="The checkpoint was made by other code than VirTues'; its tokens would come out wrong",
                code="checkpoint_rope",
            )


def _fill(module: VirTuesNet | MAEDecoder, links: Iterable[_Link], held: Mapping[str, Tensor]) -> None:
    sizes = module.architecture
    order = _neighbours(sizes.width // sizes.heads)
    parts: dict[str, list[Tensor]] = {}
    for link in links:
        if not link.table:
            value = held[link.key].detach()
            parts.setdefault(link.own, []).append(_reorder(value, sizes.heads, order) if link.turned else value)
    own = {name: values[0] if len(values) == 1 else torch.cat(values) for name, values in parts.items()}
    if isinstance(module, VirTuesNet) and not module.architecture.registers:
        own["register_tokens"] = torch.zeros(0, sizes.width)
    module.load_state_dict(own, strict=True, assign=True)


def _shelf(state: Mapping[str, Tensor]) -> nn.Module:
    """An empty module whose keys are those of ``state``."""
    root = nn.Module()
    for key, value in state.items():
        place = root
        *path, name = key.split(".")
        for step in path:
            if step not in place._modules:
                place.add_module(step, nn.Module())
            place = place.get_submodule(step)
        place.register_buffer(name, value.detach().to("meta"))
    return root
