"""What a run needs besides its slides: room on the disk, weights, a GPU, and a cluster that knows its settings."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from slideloom.cli.disk_estimate import Share
from slideloom.slides.study import Study

__all__ = ["Finding", "State", "ask", "at_hand", "disk", "gpu", "readable", "weights"]

#: ``fine``: as it should be. ``note``: a run may start, and a person should know. ``wrong``: it will fail. ``skipped``:
#: it could not be looked at.
State = Literal["fine", "note", "wrong", "skipped"]
#: How long a program may take to answer, seconds.
_PATIENCE_S = 20
#: An estimate is within a factor of two, usually above.
_TIGHT = 1.25


@dataclass(frozen=True)
class Finding:
    """What was found of one thing.

    Attributes
    ----------
    topic : str
        ``disk``, ``weights``, ``GPU`` or ``Slurm``.
    state : {"fine", "note", "wrong", "skipped"}
        How it stands.
    text : str
        In words.
    hint : str
        What to do.
    """

    topic: str
    state: State
    text: str
    hint: str = ""


def readable(size: float) -> str:
    """A number of bytes for people.

    Examples
    --------
    >>> readable(512), readable(2.5e9), readable(31e12)
    ('512 bytes', '2.5 GB', '31 TB')
    """
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.2g} {name}" if size < 9.95 * unit else f"{size / unit:.0f} {name}"
    return f"{size:.0f} bytes"


def at_hand(program: str) -> bool:
    """Whether a program is on PATH."""
    return shutil.which(program) is not None


def ask(*words: str) -> tuple[str, str]:
    """Run a program that tells something.

    Returns
    -------
    answer, complaint : str
        What it printed; why there is no answer, else empty.
    """
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_PATIENCE_S, check=False, errors="replace")
    except subprocess.TimeoutExpired:
        return "", f"no answer within {_PATIENCE_S} s"
    except OSError as error:
        return "", error.strerror or str(error)
    if done.returncode:
        complaint = (done.stderr.strip() or done.stdout.strip()).splitlines()
        return "", complaint[-1] if complaint else f"exit code {done.returncode}"
    return done.stdout, ""


# ---- disk ------------------------------------------------------------------------------------------------------------


def disk(study: Study, shares: Sequence[Share]) -> list[Finding]:
    """Whether what a run writes fits where it is written.

    Parameters
    ----------
    study : Study
        The study.
    shares : sequence of Share
        Of :func:`slideloom.cli.disk_estimate.estimate`.

    Returns
    -------
    list of Finding
        What lies there already is not written again. Quotas are not seen.
    """
    root = study.paths.root
    place = next(one for one in (root.absolute(), *root.absolute().parents) if one.exists())
    if not place.is_dir():
        return [Finding("disk", "wrong", f"{place} is a file", "Name a folder as the config's 'results'")]
    left = sum(share.left for share in shares)
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        return [Finding("disk", "skipped", f"{place}: {error.strerror or error}")]
    by_stage: dict[str, int] = {}
    for share in shares:
        by_stage[share.stage] = by_stage.get(share.stage, 0) + share.size
    largest = sorted(by_stage.items(), key=lambda one: -one[1])[:4]
    parts = ", ".join(f"{name} {readable(size)}" for name, size in largest)
    text = f"about {readable(left)} are to be written below {root}"
    text += f" (in all {readable(sum(by_stage.values()))}: {parts}); {readable(free)} are free"
    if free < left:
        hint = "Name another folder as the config's 'results', or write less: fewer 'blocks', a coarser 'mpp_um', a "
        return [Finding("disk", "wrong", text, hint + "'min_tissue' that leaves glass out, 'source: live'")]
    if free < _TIGHT * left:
        return [Finding("disk", "note", text, "That is little more than the estimate: watch it")]
    return [Finding("disk", "fine", text)]


# ---- weights ---------------------------------------------------------------------------------------------------------


def weights(study: Study, *, digest: bool) -> list[Finding]:
    """Whether the files of weights are there, whole, and of the model that the config names.

    Parameters
    ----------
    study : Study
        The study; encoders that no experiment uses are not looked at.
    digest : bool
        Read them through, for their checksums.
    """
    from slideloom.cli.weights import examine_weights

    config = study.config
    used = {name for experiment in config.experiments.values() for name in experiment.encoder}
    encoders = {name: encoder for name, encoder in config.encoders.items() if name in used}
    reports = list(
        examine_weights(config.model_copy(update={"encoders": encoders}), study.markers.channels, digest=digest)
    )
    found = [
        Finding("weights", "wrong", f"{one.where}: {one.path or ''} {one.fault}".replace("  ", " "), one.hint)
        for one in reports
        if one.fault
    ]
    found += [
        Finding("weights", "note", f"{one.where}: {note}") for one in reports if not one.fault for note in one.notes
    ]
    whole = sum(one.path is not None and not one.fault for one in reports)
    if whole or not found:
        files = "1 file, there and whole" if whole == 1 else f"{whole} files, there and whole"
        found.insert(0, Finding("weights", "fine", files if whole else "none are needed"))
    return found


# ---- GPU -------------------------------------------------------------------------------------------------------------


def gpu() -> list[Finding]:
    """What GPUs this machine has, and whether PyTorch can use them."""
    if not at_hand("nvidia-smi"):
        text = "none: nvidia-smi is not on PATH. On this machine everything runs on the CPU"
        return [Finding("GPU", "note", text, "On a cluster that is usual of a login node: the jobs' nodes have them")]
    answer, complaint = ask(
        "nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"
    )
    lines = [line for line in answer.splitlines() if line.count(",") == 2]
    if complaint or not lines:
        text = f"none: nvidia-smi says {complaint or answer.strip() or 'nothing'!r}. Everything runs on the CPU"
        return [Finding("GPU", "note", text, "Load or mend the NVIDIA driver, or run where there is a GPU")]
    names = [name.strip() for name, _, _ in (line.split(",") for line in lines)]
    _, memory, driver = (word.strip() for word in lines[0].split(","))
    each = f"{int(memory) / 1024:.0f} GB" if memory.isdigit() else memory
    text = f"{len(names)} × {names[0]}" if len(set(names)) == 1 else ", ".join(names)
    return [_seen_by_torch(f"{text} of {each}, driver {driver}")]


def _seen_by_torch(text: str) -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("GPU", "wrong", f"{text}; PyTorch is not installed", "Install requirements.lock")
    import torch

    built = torch.version.cuda
    if torch.cuda.is_available():
        return Finding(
            "GPU", "fine", f"{text}; PyTorch {torch.__version__} (CUDA {built}) sees {torch.cuda.device_count()}"
        )
    if built is None:
        hint = "Install PyTorch's CUDA build: pip install -r requirements.lock where pip may take it"
        return Finding(
            "GPU", "note", f"{text}; PyTorch {torch.__version__} is built for the CPU and does not see it", hint
        )
    hint = f"A newer driver, or a PyTorch built for an older CUDA than {built}; CUDA_VISIBLE_DEVICES must not be empty"
    return Finding("GPU", "note", f"{text}; PyTorch {torch.__version__} (CUDA {built}) does not see it", hint)
