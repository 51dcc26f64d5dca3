"""What names of files and folders say: sample id and suffix, modality, label, split."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable

from terramind_plugin.model.modalities import find_family, find_layer
from terramind_plugin.raster.paths import RASTERS

LABELS = {
    *("label", "labels", "lbl", "mask", "masks", "msk", "gt", "groundtruth", "truth"),
    *("target", "targets", "annotation", "annotations", "reference"),
}
"""Words of folders and suffixes that hold labels."""
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Split by the word of a folder or list."""
WORD = re.compile(r"[A-Za-z]{2}|[sS][12]")
"""A part of a name that may belong to a suffix; numbers and single letters belong to the id."""
SHARED = 0.5
"""Share of the ids of the smaller of two suffixes that the other one must have, so that both are suffixes."""


def words(text: str) -> list[str]:
    """Return the words of a name in lower case: of 'LabelHand' label and hand."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)]


def is_label(text: str) -> bool:
    """Return whether the name of a folder or a suffix says that it is about labels."""
    return bool(LABELS & set(words(text)))


def split_of(text: str) -> str | None:
    """Return the split that a name speaks of: 'train', 'val' or 'test'; None if it speaks of none or several."""
    found = {SPLITS[word] for word in words(text) if word in SPLITS}
    return found.pop() if len(found) == 1 else None


def claim(text: str) -> frozenset[str]:
    """Return the modalities that the name of a folder or a suffix may stand for: of 'S1Hand' S1GRD and S1RTC."""
    text = re.sub(r"Hand(?![a-z])", "", text)
    modality = find_layer(text)
    if modality is not None:
        return frozenset((modality.name,))
    families = (find_family(part) for part in (text, *re.split(r"[^A-Za-z0-9]+", text)))
    return next((frozenset(family) for family in families if family), frozenset())


def ending(name: str) -> str:
    """Return the ending of a raster's name as it is written, '' for another file."""
    return next((name[-len(end) :] for end in sorted(RASTERS, key=len)[::-1] if name.lower().endswith(end)), "")


def split_names(names: Iterable[str], known: Collection[str] = ()) -> dict[str, dict[str, str]]:
    """Return the file names of one folder by suffix and sample id.

    A known id is the beginning of its names. Otherwise a suffix is what several names share at their end, in whole
    words, and what the samples of another suffix have as well.

    Args:
        names: Names of rasters.
        known: Ids from lists or other folders.
    """
    found: dict[str, dict[str, str]] = defaultdict(dict)
    rest = []
    for name in names:
        start = next((name[:end] for end in range(len(name) - 1, 0, -1) if name[:end] in known), None)
        if start is None or name[len(start)].isalnum():
            rest.append(name)
        else:
            found[name[len(start) :]][start] = name
    for name in list(rest):
        suffix = next((suffix for suffix in found if name.endswith(suffix) and name != suffix), None)
        if suffix is not None:
            found[suffix][name.removesuffix(suffix)] = name
            rest.remove(name)
    for suffix, ids in _split_by_words(rest).items():
        found[suffix] |= ids
    return dict(found)


def _split_by_words(names: list[str]) -> dict[str, dict[str, str]]:
    counts: Counter[str] = Counter()
    for name in names:
        counts.update(_endings(name))
    plain: dict[str, dict[str, str]] = defaultdict(dict)
    worded: dict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        plain[ending(name)][name.removesuffix(ending(name))] = name
        suffix = next((one for one in _endings(name)[::-1] if counts[one] > 1), ending(name))
        worded[suffix][name.removesuffix(suffix)] = name
    if len(worded) == 1 or all(_is_shared(suffix, worded) for suffix in worded):
        return dict(worded)
    return dict(plain)


def _is_shared(suffix: str, groups: dict[str, dict[str, str]]) -> bool:
    own = groups[suffix].keys()
    others = [ids.keys() for other, ids in groups.items() if other != suffix]
    return any(len(own & ids) >= SHARED * min(len(own), len(ids)) for ids in others)


def _endings(name: str) -> list[str]:
    """Return the suffixes that a name may have, from the shortest on: words before the ending, never the whole name."""
    end = ending(name)
    parts = re.split(r"(?=[_.\-])", name.removesuffix(end))
    found = []
    for part in parts[:0:-1]:
        if not WORD.search(part):
            break
        end = part + end
        found.append(end)
    return found
