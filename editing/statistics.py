"""Second moments of an MLP's keys over a text sample: the most expensive input of a closed-form editor.

`C0 = E[k k^T]` is the uncentred second moment of the inputs of a layer's down-projection (MEMIT,
arXiv 2210.07229, equation 15). It depends on the base model, the layers, the corpus, the token cap
and the text length, and so is an artifact of its own, with a key made of all of those. A uniform
sample of the same keys is kept beside it: the background that a calibrated scope compares with.

Every text sees itself alone, whatever runs beside it: texts of like length share a pass, so that
hardly a position is padding, and a pass ends at the top layer's down-projection. Products are
float32, sums over passes float64.

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
TEXTS_PER_DRAW = 16  # the background is drawn anew for so many texts
TOKENS_PER_WINDOW = 16_384  # among so many tokens, texts of like length are put together
TOKENS_PER_PASS = 2048
WINDOWS_PER_CHECKPOINT = 4
ROWS_PER_PRODUCT = 256


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

    `sums[layer]` `[F, F]` float64, of which the upper triangle counts; `rows[layer]` `[<=S, F]` float32
    with the priorities `[<=S]` that put each key among the S smallest.
    """

    sums: dict[int, Tensor]
    rows: dict[int, Tensor]
    priorities: Tensor
    texts_done: int = 0
    n_tokens: int = 0

    def add(self, keys_NF: Tensor, layer: int) -> None:
        """Add the products of some keys of `layer` to its sums, in the upper triangle only."""
        total = self.sums[layer]
        exact = keys_NF.float()
        for start in range(0, exact.shape[1], ROWS_PER_PRODUCT):
            rows = slice(start, start + ROWS_PER_PRODUCT)
            total[rows, start:] += (exact[:, rows].T @ exact[:, start:]).to(total.device)

    def moments(self) -> dict[int, Tensor]:
        """The mean products `[F, F]` per layer, float32."""
        return {layer: ((total.triu() + total.triu(1).T) / self.n_tokens).float() for layer, total in self.sums.items()}

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


@dataclass(frozen=True)
class _Window:
    """Texts that are put together by length: the ids of those that have any, and where to go on afterwards.

    `priorities` `[N]` float64 are those of the tokens, in the order of the texts.
    """

    rows: list[list[int]]
    priorities: Tensor
    n_texts: int

    @classmethod
    def read(
        cls, base: BaseModel, texts: Sequence[str], start: int, *, room: int, max_length: int, seed: int
    ) -> _Window:
        """The texts from `start` on, as many as a window takes and `room` tokens allow.

        The draw for the background depends only on the seed and the position.
        """
        rows: list[list[int]] = []
        priorities = []
        at, taken = start, 0
        while at < len(texts) and taken < min(room, TOKENS_PER_WINDOW):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + at)
            chunk = [texts[i] for i in range(at, min(at + TEXTS_PER_DRAW, len(texts)))]
            before = taken
            for tokens in tokenise(base.tokenizer, chunk):
                if row := tokens.ids[: min(max_length, room - taken)]:
                    rows.append(row)
                    taken += len(row)
            priorities.append(torch.rand(taken - before, generator=generator, dtype=torch.float64))
            at += len(chunk)
        return cls(rows, torch.cat([torch.zeros(0, dtype=torch.float64), *priorities]), at - start)

    def passes(self) -> list[list[int]]:
        """Rows (by index) of like length, at most `TOKENS_PER_PASS` positions together or a single row."""
        order = sorted(range(len(self.rows)), key=lambda index: -len(self.rows[index]))
        parts: list[list[int]] = []
        for index in order:
            if parts and (len(parts[-1]) + 1) * len(self.rows[parts[-1][0]]) <= TOKENS_PER_PASS:
                parts[-1].append(index)
            else:
                parts.append([index])
        return parts


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


def _take_in(
    base: BaseModel,
    window: _Window,
    sums: _Sums,
    n_background: int,
    told: Callable[[int], None],
) -> None:
    """Add a window's products to the sums and, of its keys, those with the smallest priorities to the background."""
    starts = torch.tensor([0, *map(len, window.rows)]).cumsum(0)
    priorities = torch.cat([sums.priorities, window.priorities])
    kept = priorities.argsort()[:n_background]
    drawn = kept[kept >= len(sums.priorities)] - len(sums.priorities)  # tokens of the window, best first
    found = {layer: torch.zeros(len(drawn), total.shape[1]) for layer, total in sums.sums.items()}
    done = 0
    for part in window.passes():
        keys = _keys_of(base, [window.rows[index] for index in part], tuple(sums.sums))
        places = torch.cat([torch.arange(int(starts[index]), int(starts[index + 1])) for index in part])
        order = torch.full((int(starts[-1]),), -1)
        order[places] = torch.arange(len(places))
        here = order[drawn] >= 0
        for layer, keys_NF in keys.items():
            sums.add(keys_NF, layer)
            found[layer][here] = keys_NF[order[drawn[here]].to(keys_NF.device)].float().cpu()
        done += len(places)
        told(done)
    earlier = kept < len(sums.priorities)
    for layer, fresh in found.items():
        rows = torch.zeros(len(kept), fresh.shape[1])
        rows[earlier], rows[~earlier] = sums.rows[layer][kept[earlier]], fresh
        sums.rows[layer] = rows
    sums.priorities = priorities[kept]
    sums.n_tokens += done
    sums.texts_done += window.n_texts


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
    windows = 0
    while sums.texts_done < len(texts) and sums.n_tokens < max_tokens:
        before = sums.n_tokens
        window = _Window.read(base, texts, sums.texts_done, room=max_tokens - before, max_length=max_length, seed=seed)

        def told(done: int, before: int = before) -> None:
            if progress is not None:
                progress("second moments", before + done, max_tokens)

        _take_in(base, window, sums, n_background, told)
        windows += 1
        if folder is not None and windows % WINDOWS_PER_CHECKPOINT == 0:
            sums.save(folder, spec.key)
    if sums.n_tokens == 0:
        raise StatisticsError(f"{len(texts)} texts have no tokens; give a corpus with text")
    for layer, total in sums.sums.items():
        if not torch.isfinite(total).all():
            raise StatisticsError(
                f"the second moments of layer {layer} are not finite; load {base.model_id!r} with dtype float32"
            )
    result = SecondMoments(spec, sums.moments(), sums.rows, sums.n_tokens)
    if folder is not None:
        result.save(folder)
        if partial is not None:
            partial.unlink(missing_ok=True)
    return result
