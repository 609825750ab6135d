"""What is known of a published data set before a byte of it is read: segbench/data/published/NAME.json."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Archive:
    """A file to download and unpack into the data set's folder."""

    url: str
    hash: str  # md5:..., sha1:... or sha256:..., as others pin it
    bytes: int | None
    source: str  # who pins that hash
    into: str = ""  # the folder below the data set's that it is unpacked into


@dataclass(frozen=True)
class Published:
    """What is known of a data set before a byte of it is read."""

    name: str
    title: str
    page: str
    terms: str
    folder: str  # what it is called where it is unpacked
    classes: tuple[str, ...]
    images: Mapping[str, int]  # by published list of names
    archives: tuple[Archive, ...]  # none where a person must register or agree first
    wanted: tuple[str, ...]  # the archives or folders to get by hand, and where they go
    facts: Mapping[str, Any]  # all of the file

    @classmethod
    def read(cls, name: str) -> "Published":
        """What segbench/data/published/NAME.json says."""
        path = Path(__file__).parent / "published" / f"{name}.json"
        facts = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            name=name,
            title=facts["title"],
            page=facts["page"],
            terms=facts["terms"],
            folder=facts["folder"],
            classes=tuple(facts["classes"]),
            images=facts["images"],
            archives=tuple(Archive(**one) for one in facts["archives"]),
            wanted=tuple(facts["wanted"]),
            facts=facts,
        )
