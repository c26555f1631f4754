"""Who paid for a policy: an adapter says which judges rewarded it, so that none of them silently tells how good it is.

A policy that learns from a judge's rewards learns its mistakes too; what that judge says of it then proves little.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from imagine.configs.judges import HEADS
from imagine.configs.policies import adapter_of
from imagine.files import write_json
from imagine.intact import intact
from imagine.model.model import resolve
from imagine.rewards.latent import WEIGHTS
from imagine.rewards.vlm import judge_folder
from imagine.types import ImagineError

FILE = "paid_by.json"
"""Beside the weights of an adapter."""


@dataclass(frozen=True)
class Payer:
    """A judge whose rewards a policy learnt from.

    Attributes:
        name: as ``--judge`` takes it.
        weights: twelve digits of the SHA-256 of its weights; "" where nobody knows them, as behind a server.
    """

    name: str
    weights: str

    @classmethod
    def of(cls, judge: str, folder: str | Path) -> Payer:
        """The judge of a name; ``folder`` is that of the model whose dreams it judges."""
        home = judge_folder(judge)
        files = [resolve(folder) / WEIGHTS] if judge == HEADS else sorted(home.glob("*.safetensors"))
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        return cls(judge, digest[:12] if files else "")

    def is_same(self, other: Payer) -> bool:
        """Whether both are one judge: the same weights, or the same name where nobody knows them."""
        if self.weights and other.weights:
            return self.weights == other.weights
        return self.name == other.name


def payers_of(adapter: Path | None) -> list[Payer]:
    """The judges that paid for an adapter; none for the base, or where nobody noted it.

    Raises:
        CheckpointMismatch: the note cannot be read.
    """
    if adapter is None or not (adapter / FILE).is_file():
        return []
    with intact(adapter / FILE, "delete it, or copy the adapter again"):
        found = [Payer(**payer) for payer in json.loads((adapter / FILE).read_text())["judges"]]
        if not all(isinstance(value, str) for payer in found for value in (payer.name, payer.weights)):
            raise TypeError("a name or hash is no text")
        return found


def note(adapter: Path, start: Path | None, *payers: Payer) -> None:
    """Note in an adapter's folder who paid for it, and for the adapter that it started from."""
    if every := list(dict.fromkeys((*payers_of(start), *payers))):
        write_json(adapter / FILE, {"judges": [asdict(payer) for payer in every]})


def paid_by(judge: str, policies: Sequence[str], folder: str | Path) -> tuple[str, ...]:
    """Those of some policies, by name, that a judge paid for; ``folder`` is the model's."""
    own = Payer.of(judge, folder)
    return tuple(p for p in policies if any(own.is_same(payer) for payer in payers_of(_folder(p, folder))))


def warning(judge: str, policies: Sequence[str], second: str | None) -> str:
    """What must be said where a judge tells how good policies are that it paid for."""
    other = f"judge {second}, whose numbers stand beside them," if second else "another judge (--judge)"
    return (
        f"{', '.join(policies)} learnt from rewards of judge {judge}, and its mistakes with them; rather than its "
        f"imagined rates believe {other} or a simulator."
    )


def _folder(policy: str, folder: str | Path) -> Path | None:
    """Where a policy of a name lies, flaws left out."""
    name = policy.partition("+")[0]
    try:
        return adapter_of(name, folder)
    except ImagineError:
        return Path(name)
