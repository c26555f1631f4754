"""The dream that draws nothing: its first picture for ever, and the robot where its actions lead.

Whoever says the same of such a dream as of a real one is not saying it because of the pictures. So it stands beside
every success rate that was imagined.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from imagine.types import Chunk, Context
from imagine.world.dream import Dream
from imagine.world.step import Prediction


class FrozenDream(Dream):
    """A :class:`imagine.world.dream.Dream` whose pictures never change; the network is not asked."""

    def predict(self, rows: Tensor, context: Context, action: Tensor, seeds: Sequence[int]) -> Prediction:
        """See :meth:`imagine.world.dream.Dream.predict`."""
        frames = self.model.chunk_shapes["video"][0]
        still = context.video[:, -1:].expand(-1, frames, -1, -1, -1)
        return Prediction(still, self.model.integrate_proprio(context, Chunk(action=action)))
