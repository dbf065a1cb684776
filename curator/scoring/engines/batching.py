"""Which rows share a forward pass: sorted by length, bounded by tokens, so that little or nothing of it is padding."""

from collections.abc import Sequence


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Row indices in batches, longest rows first, each row once.

    rows x longest row <= `batch_tokens` in every batch of more than one row; a longer row stands alone. The
    longest go first so that a batch that does not fit into memory fails at the start and not at the end.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[list[int]] = []
    for index in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def plan_packs(lengths: Sequence[int], pack_tokens: int) -> list[list[int]]:
    """Row indices in packs of at most `pack_tokens` tokens with no padding, longest rows first, each row once.

    A longer row stands alone.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    packs: list[list[int]] = []
    n_tokens = 0
    for index in order:
        if packs and n_tokens + lengths[index] <= pack_tokens:
            packs[-1].append(index)
            n_tokens += lengths[index]
        else:
            packs.append([index])
            n_tokens = lengths[index]
    return packs
