"""The leverage scope: a token is in scope when its key is, to the solve, one of the edited keys.

The update of a layer is a sum over edited keys, `Delta k = sum_i u_i (v_i . k)` with `v_i = C^-1 k_i` and
`C = lambda C0 + sum k k^T` (MEMIT, arXiv 2210.07229, equation 14). So the share of edit i in what a token with key k
gets, relative to what the edited key itself gets, is

    r_i(k) = (k_i^T C^-1 k) / (k_i^T C^-1 k_i),

a similarity in which common directions count for little; it is 1 at the edited key. A token is in scope where its
largest r_i reaches the threshold of that key, which is found on background keys when the key is edited, and where the
text up to it has told every word of that key's subject: a key so low in the model is mostly that of its own word, the
"Jr." of one name that of every other. That is decided once a token, at the first edited layer, for all edited layers:
keys there are the base model's own, so a score depends on the text up to the token alone, whatever its batch mates, its
padding or the length of what follows, and no later batch changes it. The index of the largest names the fact. An
answer does not take an edit that its prompt has taken.

Shapes: N edited keys, F inner width, T tokens, S background keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editing.editors.coachhook.config import CoachHookConfig
from editing.errors import EditRefusedError
from editing.templates import tells


@dataclass(frozen=True, eq=False, slots=True)
class LeverageGate:
    """The edited keys as a token is compared with them, in the order of their edits.

    `texts` are the contexts of the keys (each ends with its subject), `owners` the context whose solved key holds
    what the key's token gets, `subjects` whose key it is (folded, as in `FactKey`), `names` what a text must have told
    (empty where the key's own context does not name its subject). `detectors` `[N, F]` float32 are
    `C^-1 k_i / (k_i^T C^-1 k_i)` as they were when the key was edited, `thresholds` `[N]` float32.
    """

    texts: tuple[str, ...]
    owners: tuple[str, ...]
    subjects: tuple[str, ...]
    names: tuple[str, ...]
    detectors: Tensor
    thresholds: Tensor

    @classmethod
    def empty(cls, inner: int) -> LeverageGate:
        """The gate before the first edit."""
        return cls((), (), (), (), torch.zeros(0, inner), torch.zeros(0))

    def read(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Of keys `[..., F]` the score, r of the best edited key over its threshold, and that key's index.

        A score of 1 or more is in scope where the text agrees. With no edited keys scores are 0 and indices -1.
        """
        if not self.texts:
            return keys.new_zeros(keys.shape[:-1], dtype=torch.float32), keys.new_full(
                keys.shape[:-1], -1, dtype=torch.int64
            )
        best = self._scores(keys).max(dim=-1)
        return best.values, best.indices

    def told_by(self, text: str, key: Tensor) -> tuple[float, int] | None:
        """Of the edited keys that a token's key `[F]` reaches the best whose name `text` has told, as its score and
        index; None where it has told none of their names."""
        scores_N = self._scores(key)
        reached = [(score, row) for row, score in enumerate(scores_N.tolist()) if score >= 1.0]
        told = (found for found in sorted(reached, reverse=True) if tells(text, self.names[found[1]]))
        return next(told, None)

    def _scores(self, keys: Tensor) -> Tensor:
        return (keys.float() @ self.detectors.to(keys.device).T) / self.thresholds.to(keys.device)

    def extended(
        self,
        moment_FF: Tensor,
        texts: Sequence[str],
        owners: Sequence[str],
        subjects: Sequence[str],
        names: Sequence[str],
        keys_NF: Tensor,
        background_SF: Tensor,
        config: CoachHookConfig,
    ) -> LeverageGate:
        """The gate with these keys edited under `moment_FF`, the `C` that their own solve leaves behind.

        A context that is edited again is replaced. The threshold of a key is `leverage_floor`, and no lower than what
        puts the share `leverage_quantile` of background keys out of its scope. Raises `EditRefusedError` where the
        moment is not positive definite.
        """
        factor, failed = torch.linalg.cholesky_ex(moment_FF.double())
        if failed:
            raise EditRefusedError(
                "the second moment is not positive definite; compute the statistics over more tokens or raise "
                "moment_ridge"
            )
        exact_NF = keys_NF.double().to(factor.device)
        solved_NF = torch.cholesky_solve(exact_NF.T, factor).T
        detectors_NF = (solved_NF / (solved_NF * exact_NF).sum(1, keepdim=True)).float().cpu()
        ordered_SN = (background_SF.float() @ detectors_NF.T).sort(dim=0).values
        quantile_N = ordered_SN[round(config.leverage_quantile * (len(ordered_SN) - 1))]
        thresholds_N = quantile_N.clamp(min=config.leverage_floor, max=MOST)
        new = set(texts)
        stay = [index for index, text in enumerate(self.texts) if text not in new]
        return LeverageGate(
            (*(self.texts[index] for index in stay), *texts),
            (*(self.owners[index] for index in stay), *owners),
            (*(self.subjects[index] for index in stay), *subjects),
            (*(self.names[index] for index in stay), *names),
            torch.cat([self.detectors[stay], detectors_NF]),
            torch.cat([self.thresholds[stay], thresholds_N]),
        )

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, as they are saved."""
        return {"gate.detectors": self.detectors, "gate.thresholds": self.thresholds}

    def content(self) -> dict[str, list[str]]:
        """Everything that is not a tensor, as plain JSON types."""
        return {name: list(getattr(self, name)) for name in ("texts", "owners", "subjects", "names")}

    @classmethod
    def rebuild(cls, content: Mapping[str, Sequence[str]], tensors: Mapping[str, Tensor]) -> LeverageGate:
        """The gate that `content` and `tensors` gave."""
        return cls(
            tuple(content["texts"]),
            tuple(content["owners"]),
            tuple(content["subjects"]),
            tuple(content["names"]),
            tensors["gate.detectors"],
            tensors["gate.thresholds"],
        )


MOST = 0.95  # a threshold stays below 1, the score of the edited key itself
