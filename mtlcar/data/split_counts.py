"""How many images (or which groups) of each class a split gets."""

import numpy as np


def stratified_counts(sizes: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Images of each class in each split, int64 [C, 3], rows summing to `sizes`.

    Every class gets its share rounded up or down, at least one image in every split with a share where it has that
    many images, and always one in training. The totals are the shares of the whole rounded, unless those minima
    forbid it: larger classes do not make up for smaller ones.

    Args:
        sizes: images of each class, int [C], each at least 1.
        shares: of train, val and test, summing to 1, float [3].
    """
    ideal = sizes[:, None] * shares
    used = shares > 0
    least = np.where((sizes >= used.sum())[:, None], used, False).astype(np.int64)
    least[:, 0] = 1
    low, high = np.maximum(np.floor(ideal), least), np.maximum(np.ceil(ideal), least)
    counts = np.stack([_largest_remainder(i, m) for i, m in zip(ideal, least, strict=True)])
    total = _largest_remainder(sizes.sum() * shares, np.zeros(3, dtype=np.int64))

    def cheapest(a: int, b: int) -> tuple[float, list[tuple[int, int, int]]]:
        """Moving one image from split a to b: what that adds to the squared distance from the ideal, less for a large
        class, and the move (class, a, b); infinite where no class may."""
        cost = ((ideal[:, a] - counts[:, a]) - (ideal[:, b] - counts[:, b]) + 1) / sizes
        cost[(counts[:, a] <= low[:, a]) | (counts[:, b] >= high[:, b])] = np.inf
        c = int(cost.argmin())
        return float(cost[c]), [(c, a, b)]

    while True:
        off = counts.sum(axis=0) - total
        pairs = [(int(a), int(b)) for a in np.flatnonzero(off > 0) for b in np.flatnonzero(off < 0) if used[b]]
        moves = [cheapest(a, b) for a, b in pairs]
        if not any(
            np.isfinite(cost) for cost, _ in moves
        ):  # no class may move directly: two, by way of the third split
            legs = [(cheapest(a, 3 - a - b), cheapest(3 - a - b, b)) for a, b in pairs if used[3 - a - b]]
            moves = [(first[0] + second[0], first[1] + second[1]) for first, second in legs]
        cost, chosen = min(moves, key=lambda m: m[0], default=(np.inf, []))
        if not np.isfinite(cost):
            return counts
        for c, a, b in chosen:
            counts[c, a] -= 1
            counts[c, b] += 1


def _largest_remainder(ideal: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Integers [3] >= `least` with the sum of `ideal` [3], as near to it as that allows."""
    n = round(float(ideal.sum()))
    counts = np.maximum(np.floor(ideal + 1e-9).astype(np.int64), least)
    while counts.sum() < n:
        counts[np.argmax(np.where(ideal > 0, ideal - counts, -np.inf))] += 1
    while counts.sum() > n:
        counts[np.argmax(np.where(counts > least, counts - ideal, -np.inf))] -= 1
    return counts


def group_counts(table: np.ndarray, shares: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Split index of each group, int64 [G].

    Groups, large ones first, go where their classes lack most; then a class missing from training or (where it has
    enough groups) from another split gets its smallest group there; then single groups move while that brings the
    classes nearer to their shares.

    Args:
        table: images of each group and class, int [G, C].
        shares: of train, val and test, summing to 1, float [3].
        order: the groups in the order in which equals are tried, int [G].
    """
    size = np.maximum(table.sum(axis=0), 1)
    weight = table / size  # each class counts the same however many images it has
    target = shares[:, None] * np.ones(table.shape[1])
    part = np.full(len(table), -1)
    now = np.zeros_like(target)
    used = np.flatnonzero(shares > 0)
    by_size = order[np.argsort(-table.sum(axis=1)[order], kind="stable")]
    for g in by_size:
        lack = ((target - now) * weight[g]).sum(axis=1)
        part[g] = used[np.argmax(lack[used])]
        now[part[g]] += weight[g]
    _cover_classes(table, part, used, by_size)
    _improve(table, weight, part, used, target, by_size)
    return part


def _groups_of(table: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Groups of each class in each split, int [3, C]."""
    return np.stack([(table[part == s] > 0).sum(axis=0) for s in range(3)])


def _cover_classes(table: np.ndarray, part: np.ndarray, used: np.ndarray, by_size: np.ndarray) -> None:
    """Moves groups, in place, so that training has every class, and other splits those with enough groups."""
    groups = (table > 0).sum(axis=0)
    has = _groups_of(table, part)
    for c in np.argsort(groups, kind="stable"):
        for s in used:
            if has[s, c] > 0 or groups[c] == 0 or (s != 0 and groups[c] < len(used)):
                continue
            for g in by_size[::-1]:
                mine = table[g] > 0
                # a split may lose its last group of a class for training's sake only
                spare = s == 0 or bool((has[part[g]][mine] > 1).all())
                if table[g, c] > 0 and part[g] != s and spare:
                    has[part[g]][mine] -= 1
                    has[s][mine] += 1
                    part[g] = s
                    break


def _improve(
    table: np.ndarray, weight: np.ndarray, part: np.ndarray, used: np.ndarray, target: np.ndarray, by_size: np.ndarray
) -> None:
    """Moves single groups, in place, while that lowers the squared distance from the target and strips no class."""
    now = np.stack([weight[part == s].sum(axis=0) for s in range(3)])
    has = _groups_of(table, part)
    for _ in range(10):
        moved = False
        for g in by_size[::-1]:
            a, w, mine = part[g], weight[g], table[g] > 0
            if (has[a][mine] <= 1).any():
                continue
            off = now - target
            gain = [2 * ((off[a] - off[b] - w) * w).sum() if b != a else 0.0 for b in used]
            if max(gain) > 1e-12:
                b = used[int(np.argmax(gain))]
                now[a] -= w
                now[b] += w
                has[a][mine] -= 1
                has[b][mine] += 1
                part[g], moved = b, True
        if not moved:
            return
