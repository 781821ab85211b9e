"""Which records are held out for validation: a seeded hash of what they share with others, never of their place.

Records that share a bond (the same prompt; for preference pairs also an answer) form a group, and a group is on one
side as a whole. Without this, a model that has merely learnt that a text was the right answer somewhere is measured
as wrong wherever the same text is the rejected one: pairs made of neighbours came out *below* chance.

How: union-find over the bonds (near-linear), then the hash of each group's smallest bond is its place in [0, 1);
groups below the fraction are held out, smallest place first, as long as the limit is kept.
"""

from __future__ import annotations

from collections.abc import Iterable

import xxhash

_LARGEST_SHARE = 0.5
"""At most this share of the records is ever held out, however few there are."""


def held_out_bonds(records: Iterable[list[str]], fraction: float, limit: int, seed: int) -> set[str]:
    """Return the bonds of all held-out records; each record is given by its list of bonds.

    At most `limit` records are held out. A small set whose groups all lie above `fraction` still gives its lowest one
    that fits, unless `fraction` or `limit` is zero.
    """
    parent: dict[str, str] = {}
    firsts: list[str] = []
    for bonds in records:
        firsts.append(bonds[0])
        for bond in bonds:
            _join(parent, bonds[0], bond)
    sizes: dict[str, int] = {}
    for first in firsts:
        group = _find(parent, first)
        sizes[group] = sizes.get(group, 0) + 1
    if not fraction or not limit:
        return set()
    room = min(limit, int(_LARGEST_SHARE * len(firsts)))
    place = {group: xxhash.xxh3_64_intdigest(f"{seed}:{group}") / 2**64 for group in sizes}
    chosen: set[str] = set()
    for group in sorted(sizes, key=lambda group: (place[group], group)):
        if place[group] >= fraction and chosen:
            break
        if sizes[group] <= room:
            chosen.add(group)
            room -= sizes[group]
    return {bond for bond in parent if _find(parent, bond) in chosen}


def expected_held_out(records: int, fraction: float, limit: int) -> int:
    """Return about how many of the records `held_out_bonds` holds out, as if each were a group of its own."""
    room = min(limit, int(_LARGEST_SHARE * records))
    return min(room, max(1, round(records * fraction))) if fraction else 0


def _find(parent: dict[str, str], bond: str) -> str:
    """Return the group of a bond: its smallest member; paths are halved on the way."""
    parent.setdefault(bond, bond)
    while parent[bond] != bond:
        parent[bond] = parent[parent[bond]]
        bond = parent[bond]
    return bond


def _join(parent: dict[str, str], left: str, right: str) -> None:
    left, right = _find(parent, left), _find(parent, right)
    if left != right:
        parent[max(left, right)] = min(left, right)
