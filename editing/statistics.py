"""Second moments of an MLP's keys over a text sample: the most expensive input of a closed-form editor.

`C0 = E[k k^T]` is the uncentred second moment of the inputs of a layer's down-projection (MEMIT,
arXiv 2210.07229, equation 15). It depends on the base model, the layers, the corpus, the token cap
and the text length, and so is an artifact of its own, with a key made of all of those. A uniform
sample of the same keys is kept beside it: the background that a calibrated scope compares with.

Shapes: N tokens, F inner width of the MLP, S background keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editing.errors import StatisticsError
from editing.models import BaseModel
from editing.models.trace import inputs_of, removing
from editing.storage import canonical_json, read_json, read_tensors, tensors_digest, write_json, write_tensors
from editing.tokenisation import pad, padding_id, tokenise

FORMAT = 1
TEXTS_PER_STEP = 16
STEPS_PER_CHECKPOINT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsSpec:
    """Everything that second moments depend on; `key` is the SHA-256 of it."""

    base_fingerprint: str
    tokenizer_hash: str
    layers: tuple[int, ...]
    corpus_digest: str
    max_tokens: int
    max_length: int
    n_background: int
    seed: int

    @property
    def key(self) -> str:
        """Identity of the artifact."""
        return hashlib.sha256(canonical_json(asdict(self)).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class SecondMoments:
    """Second moments and background keys per layer, float32 on the CPU.

    `moments[layer]` is `[F, F]`, `background[layer]` is `[S, F]`; `n_tokens` were counted.
    """

    spec: StatisticsSpec
    moments: Mapping[int, Tensor]
    background: Mapping[int, Tensor]
    n_tokens: int

    @property
    def key(self) -> str:
        """Identity of the artifact, as in `StatisticsSpec`."""
        return self.spec.key

    def require(self, base: BaseModel, layers: Sequence[int]) -> None:
        """Refuse to serve another base, tokenizer or layer. Raises `StatisticsError` naming the difference."""
        for name, mine, theirs in (
            ("base fingerprint", self.spec.base_fingerprint, base.fingerprint),
            ("tokenizer hash", self.spec.tokenizer_hash, base.tokenizer_hash),
        ):
            if mine != theirs:
                raise StatisticsError(
                    f"the statistics' {name} is {mine[:12]}, that of {base.model_id!r} is {theirs[:12]}; "
                    "compute statistics for this model"
                )
        missing = sorted(set(layers) - set(self.spec.layers))
        if missing:
            raise StatisticsError(
                f"the statistics cover layers {list(self.spec.layers)}, not {missing}; compute them for these layers"
            )

    def save(self, folder: Path) -> str:
        """Write `statistics.json` and `statistics.safetensors`; returns `key`."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"moments.{layer}": tensor for layer, tensor in self.moments.items()}
        tensors |= {f"background.{layer}": tensor for layer, tensor in self.background.items()}
        write_tensors(folder / "statistics.safetensors", tensors)
        content = {
            "format": FORMAT,
            "key": self.key,
            "spec": asdict(self.spec),
            "n_tokens": self.n_tokens,
            "tensors_digest": tensors_digest(tensors),
        }
        write_json(folder / "statistics.json", content)
        return self.key

    @classmethod
    def load(cls, folder: Path) -> SecondMoments:
        """Read and verify what `save` wrote. Raises `StatisticsError` when it is missing, altered or too new."""
        content = read_json(folder / "statistics.json", StatisticsError)
        if content.get("format") != FORMAT:
            raise StatisticsError(
                f"{folder} holds statistics of format {content.get('format')!r}, this version reads {FORMAT}; "
                "compute them again"
            )
        tensors = read_tensors(folder / "statistics.safetensors", StatisticsError)
        spec = StatisticsSpec(**{**content["spec"], "layers": tuple(content["spec"]["layers"])})
        if tensors_digest(tensors) != content["tensors_digest"] or spec.key != content["key"]:
            raise StatisticsError(
                f"the statistics in {folder} were altered after they were written; compute them again"
            )
        return cls(
            spec=spec,
            moments={layer: tensors[f"moments.{layer}"] for layer in spec.layers},
            background={layer: tensors[f"background.{layer}"] for layer in spec.layers},
            n_tokens=content["n_tokens"],
        )


@dataclass
class _Sums:
    """Running sums over the texts so far: what a checkpoint holds.

    `sums[layer]` `[F, F]` float64; `rows[layer]` `[<=S, F]` float32 with the priorities `[<=S]`
    that put each key among the S smallest.
    """

    sums: dict[int, Tensor]
    rows: dict[int, Tensor]
    priorities: Tensor
    texts_done: int = 0
    n_tokens: int = 0

    def add(self, keys: Mapping[int, Tensor], n_background: int, seed: int) -> None:
        """Take in `keys[layer]` `[N, F]`; the draw for the background depends only on the seed and the position."""
        count = len(next(iter(keys.values())))
        generator = torch.Generator().manual_seed(seed * 1_000_003 + self.texts_done)
        priorities = torch.cat([self.priorities, torch.rand(count, generator=generator, dtype=torch.float64)])
        kept = priorities.argsort()[:n_background]
        for layer, keys_NF in keys.items():
            exact = keys_NF.double()
            self.sums[layer].addmm_(exact.T, exact)
            self.rows[layer] = torch.cat([self.rows[layer], keys_NF.float().cpu()])[kept]
        self.priorities = priorities[kept]
        self.n_tokens += count

    def save(self, folder: Path, key: str) -> None:
        tensors = {"priorities": self.priorities, "counts": torch.tensor([self.texts_done, self.n_tokens])}
        for layer, total in self.sums.items():
            tensors |= {f"sums.{layer}": total, f"rows.{layer}": self.rows[layer]}
        write_tensors(folder / f"partial-{key[:16]}.safetensors", tensors)

    @classmethod
    def restore(cls, path: Path, layers: Sequence[int]) -> _Sums:
        tensors = read_tensors(path, StatisticsError)
        done, count = tensors["counts"].tolist()
        return cls(
            {layer: tensors[f"sums.{layer}"] for layer in layers},
            {layer: tensors[f"rows.{layer}"] for layer in layers},
            tensors["priorities"],
            done,
            count,
        )


def _keys_of(base: BaseModel, rows: Sequence[list[int]], layers: Sequence[int]) -> dict[int, Tensor]:
    """Keys `[N, F]` per layer at every real token of `rows`."""
    ids, mask = pad(rows, padding_id(base.tokenizer), side="right")
    ids, mask = ids.to(base.device), mask.to(base.device)
    seen: dict[int, Tensor] = {}
    modules = {layer: base.down_projection(layer) for layer in layers}

    def keep(layer: int) -> Callable[[Any, tuple[Any, ...]], None]:
        def hook(_: Any, args: tuple[Any, ...]) -> None:
            seen[layer] = args[0][mask.bool().to(args[0].device)]

        return hook

    *lower, top = sorted(layers)
    handles = [modules[layer].register_forward_pre_hook(keep(layer)) for layer in lower]
    with removing(handles):
        keys_BTF = inputs_of(base.model, modules[top], input_ids=ids, attention_mask=mask, use_cache=False)
    seen[top] = keys_BTF[mask.bool().to(keys_BTF.device)]
    return seen


@torch.no_grad()
def compute_second_moments(
    base: BaseModel,
    texts: Sequence[str],
    layers: Sequence[int],
    *,
    max_tokens: int = 1_000_000,
    max_length: int = 256,
    n_background: int = 2048,
    seed: int = 0,
    folder: Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> SecondMoments:
    """Second moments over the first `max_tokens` tokens of `texts`, each text cut at `max_length` tokens.

    With `folder` the finished artifact is read from there if it has the same key, a run that was cut
    short goes on from its last checkpoint, and the result is saved. Raises `StatisticsError` when
    there are no tokens or a sum is not finite.
    """
    layers = tuple(sorted(set(layers)))
    if not layers or max_tokens < 1 or max_length < 1 or n_background < 1:
        raise StatisticsError(
            f"layers {layers}, max_tokens {max_tokens}, max_length {max_length} and n_background {n_background} "
            "must all be at least one"
        )
    corpus = hashlib.sha256()
    for text in texts:
        corpus.update(hashlib.sha256(text.encode()).digest())
    spec = StatisticsSpec(
        base_fingerprint=base.fingerprint,
        tokenizer_hash=base.tokenizer_hash,
        layers=layers,
        corpus_digest=corpus.hexdigest(),
        max_tokens=max_tokens,
        max_length=max_length,
        n_background=n_background,
        seed=seed,
    )
    partial = None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "statistics.json").exists():
            finished = SecondMoments.load(folder)
            if finished.key == spec.key:
                return finished
        partial = folder / f"partial-{spec.key[:16]}.safetensors"
    if partial is not None and partial.exists():
        sums = _Sums.restore(partial, layers)
    else:
        widths = {layer: base.down_weight(layer).shape[1] for layer in layers}
        sums = _Sums(
            {layer: torch.zeros(width, width, dtype=torch.float64) for layer, width in widths.items()},
            {layer: torch.zeros(0, width) for layer, width in widths.items()},
            torch.zeros(0, dtype=torch.float64),
        )
    step = 0
    while sums.texts_done < len(texts) and sums.n_tokens < max_tokens:
        chunk = [texts[i] for i in range(sums.texts_done, min(sums.texts_done + TEXTS_PER_STEP, len(texts)))]
        rows = [row for tokens in tokenise(base.tokenizer, chunk) if (row := tokens.ids[:max_length])]
        room = max_tokens - sums.n_tokens
        if rows:
            keys = _keys_of(base, rows, layers)
            sums.add({layer: k[:room].to(sums.sums[layer].device) for layer, k in keys.items()}, n_background, seed)
        sums.texts_done += len(chunk)
        step += 1
        if folder is not None and step % STEPS_PER_CHECKPOINT == 0:
            sums.save(folder, spec.key)
        if progress is not None:
            progress("second moments", min(sums.n_tokens, max_tokens), max_tokens)
    if sums.n_tokens == 0:
        raise StatisticsError(f"{len(texts)} texts have no tokens; give a corpus with text")
    for layer, total in sums.sums.items():
        if not torch.isfinite(total).all():
            raise StatisticsError(
                f"the second moments of layer {layer} are not finite; load {base.model_id!r} with dtype float32"
            )
    moments = {layer: (total / sums.n_tokens).float() for layer, total in sums.sums.items()}
    result = SecondMoments(spec, moments, sums.rows, sums.n_tokens)
    if folder is not None:
        result.save(folder)
        if partial is not None:
            partial.unlink(missing_ok=True)
    return result
